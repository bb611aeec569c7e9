"""What the engine is measured against: the ways people grade such studies today, and the limits of the machine."""

from spine_engine.backends.openvino import without_telemetry

without_telemetry()  # baselines import openvino themselves
