"""`deeplab selftest`: a narrow network against PyTorch's float64 numbers, on the devices here."""
