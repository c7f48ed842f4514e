"""The loop, its steps, and the workdir that it leaves."""
