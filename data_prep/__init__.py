"""Scans and phantoms to TFDS records; runs on the host, without JAX."""
