"""From counts of pixels to scores, their interval, and `evaluation.json`."""
