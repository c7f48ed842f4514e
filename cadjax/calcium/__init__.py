"""Calcium of scans without contrast: Agatston, volume and mass scores."""
