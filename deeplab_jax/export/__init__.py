"""`deeplab export`: a network as ONNX, StableHLO or safetensors, in a folder that proves itself."""
