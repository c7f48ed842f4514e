"""Code that a data set's features.json may name, and nobody may run."""
