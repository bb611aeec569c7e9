"""Checkpoints to ONNX, and models to a bundle that the engine opens."""
