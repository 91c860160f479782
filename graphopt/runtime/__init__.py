"""ONNX Runtime sessions, evaluation, latency and comparison. Import the module that you need; this one stays
cheap."""
