"""Coronary arteries from masks: trees, centrelines, names, stenosis."""
