"""Fixtures for all tests. Tests run on the installed package and need no network."""

import os

import pytest

# Before huggingface_hub is imported: no test reaches for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402


@pytest.fixture(autouse=True)
def two_threads():
    """Every test starts with two threads, whatever the one before it set."""
    torch.set_num_threads(2)
    yield
