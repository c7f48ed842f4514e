"""Numbers from labels and scores, with intervals; no model, no files."""
