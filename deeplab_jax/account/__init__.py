"""What a run's work directory tells afterwards: where its hours went, and whether it repeats."""
