"""Rows of `scripts/fault_matrix.py`."""
