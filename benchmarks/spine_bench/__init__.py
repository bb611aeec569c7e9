"""Measurements of speed and of what the engine promises."""
