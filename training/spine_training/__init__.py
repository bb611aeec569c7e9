"""PyTorch models, datasets, augmentation, training and evaluation for spine-engine."""
