"""`deeplab demo`: every verb once, on drawn images."""
