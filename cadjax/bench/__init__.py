"""The benchmark: every row of its table is measured in a process of its own."""
