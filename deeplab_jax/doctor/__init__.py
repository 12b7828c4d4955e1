"""Checks a data set before anything is trained on it, and proposes a recipe: `deeplab doctor`."""
