"""Each model, explanation and link measured over a data set."""
