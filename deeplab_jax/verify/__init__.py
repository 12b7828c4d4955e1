"""`deeplab verify`: an exported folder against its sample, and against the network on data."""
