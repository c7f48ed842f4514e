"""A classifier's evidence on a segmenter's vessels: findings, decision."""
