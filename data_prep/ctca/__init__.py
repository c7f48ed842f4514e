"""The TFDS builder of CTCA volumes with CAD labels."""
