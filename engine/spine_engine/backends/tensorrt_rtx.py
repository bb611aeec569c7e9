"""TensorRT-RTX: the backend of ``tensorrt``, with its own libraries."""

from functools import partial

from spine_engine.backends.engines import RTX
from spine_engine.backends.tensorrt import library_status, open_engine

open_model = partial(open_engine, RTX)
status = partial(library_status, RTX)
