"""All formats that are fuzzed."""

from fuzz import runs, scans, tables

TARGETS = (*scans.TARGETS, *tables.TARGETS, *runs.TARGETS)
