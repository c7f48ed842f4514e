"""Results as files: JSON, NIfTI, pictures and pages."""
