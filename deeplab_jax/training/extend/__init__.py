"""What a caller in Python brings to a run, and when a run ends before its plan does."""
