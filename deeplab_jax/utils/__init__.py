"""Tools of every room: atomic writes, progress bars, trees of arrays, the compile cache."""
