"""The training run: its plan, its step, its loop, and what its work directory holds."""
