"""PyTorch on one thread: the models of these tests are so small that more threads only wait for each other."""

import sys

import pytest


@pytest.fixture(autouse=True)
def one_thread():
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def without_pictures(monkeypatch):
    """Trainings that draw no curves: matplotlib takes longer than all their steps."""
    from spine_training import curves

    monkeypatch.setattr(curves, "write_picture", lambda *_: None)
