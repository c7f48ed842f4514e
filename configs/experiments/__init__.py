"""Plans: the questions, one file each; see cadjax.experiment."""
