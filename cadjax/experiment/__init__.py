"""Experiments: arms x folds x seeds, each trained once, compared in pairs."""
