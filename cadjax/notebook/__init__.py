"""What notebooks need beside the programs."""
