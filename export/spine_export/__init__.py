"""Checkpoints to ONNX, models to a bundle that the engine opens, and bundles to GPU engines."""

import spine_training as spine_training  # first: it keeps what timm_3d's import warns of from every user's screen
