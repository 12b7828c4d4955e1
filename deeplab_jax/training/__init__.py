"""The training run: its plan, its step, its loop and its work directory."""
