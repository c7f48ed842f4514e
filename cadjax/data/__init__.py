"""From records and scans to batches and model inputs."""
