"""A segmenter: its training task, losses, windows, and scans."""
