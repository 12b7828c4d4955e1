"""From images and a network to labels, counts and files: evaluate, predict and the API."""
