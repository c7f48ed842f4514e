"""A classifier: its training task, and scoring a scan."""
