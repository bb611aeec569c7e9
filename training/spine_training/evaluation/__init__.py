"""Predictions against truth: the official metric with its intervals, reliability, comparison, and calibration.

Nothing here imports PyTorch, so that ``spine-engine evaluate`` starts at once.
"""
