"""Sources that samples are read from: files of a folder, TFDS, or a cache of decoded samples."""
