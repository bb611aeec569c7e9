"""The level heat-map detector: truth, augmentation, model, training, evaluation and export."""
