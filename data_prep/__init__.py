"""Scans and phantoms to TFDS records; runs on the host, without JAX."""

from data_prep import interrupt

interrupt.guard_imports()
