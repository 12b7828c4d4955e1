"""Names and layouts of other projects' checkpoints against ours, in both directions."""
