"""PyTorch models, training and evaluation. Imports the engine; the engine never imports this."""

import warnings

# timm_3d scripts its activations when it is imported, which newer PyTorch warns about; nothing here depends on it.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
