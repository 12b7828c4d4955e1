"""Times what users run on the machine at hand, in alternation with PyTorch: `deeplab bench`."""
