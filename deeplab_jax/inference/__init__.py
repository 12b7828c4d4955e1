"""Inference: a network's labels, counts and files of images, for evaluate, predict and the API."""
