"""Damages files in every way that can be drawn, and counts what readers do."""
