"""Scores of a checkpoint on a data set: counts, scores, their interval, `evaluation.json`."""
