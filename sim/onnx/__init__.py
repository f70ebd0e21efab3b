"""ONNX Attention cases run on the core: reading them, mapping them to requests, judging results."""
