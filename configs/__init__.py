"""Configurations: plain Python files with a `get_config(arg=None)`."""
