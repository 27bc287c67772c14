"""Fixtures for all tests. Tests run on the installed package and need no network."""

import os
import signal

import pytest

# Before huggingface_hub is imported: no test reaches for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported: its waiting threads otherwise spin, and on two cores that is most of the tests' time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Subprocesses import the installed package, and not the source folder that tests are run from.
os.environ["PYTHONSAFEPATH"] = "1"

# A shell that runs something in the background has it ignore Ctrl-C, which tests of interruptions raise.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import torch  # noqa: E402
from devices import device  # noqa: E402, F401 (a fixture)


@pytest.fixture(autouse=True)
def two_threads():
    """Every test starts with two threads, whatever the one before it set."""
    torch.set_num_threads(2)
    yield


@pytest.fixture(autouse=True)
def models_on_the_cpu(monkeypatch):
    """Where a test names no device, models are loaded on the CPU, also on a machine with a GPU."""
    monkeypatch.setattr("codegen_fast.loading._best_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="session")
def without_gpus():
    """The environment of a process that sees none."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
