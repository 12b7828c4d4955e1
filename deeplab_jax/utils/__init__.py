"""Tools without a role of their own: atomic writes, progress bars, the compile cache."""
