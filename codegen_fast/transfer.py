"""Small tensors on their way to a device, in the order of its stream and without the host waiting (floor 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def is_host(device: torch.device) -> bool:
    """Whether numpy can look at and change tensors of the device in place."""
    return device.type == "cpu"


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A list or array (of this type) or a tensor on the device. On a CPU it may share memory with what was given."""
    tensor = values if isinstance(values, torch.Tensor) else torch.as_tensor(values, dtype=dtype, device="cpu")
    if device.type != "cuda" or tensor.device == device:
        return tensor
    # torch keeps the pinned copy until the stream has read it.
    return tensor.pin_memory().to(device, non_blocking=True)


# In inference mode, whatever mode the caller is in: tensors that were made in it can be written in it only.
@torch.inference_mode()
def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """target <- source, before whatever is enqueued later."""
    target.copy_(source, non_blocking=True)


def write(target: torch.Tensor, values: np.ndarray) -> None:
    """target <- values of the same shape and type, before whatever is enqueued later."""
    source = torch.from_numpy(values)
    copy(target, source.pin_memory() if target.device.type == "cuda" else source)


def wait_for(device: torch.device) -> bool:
    """Waits for all that was enqueued on the device's current stream; whether all of it was done, and none failed."""
    try:
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
    except RuntimeError:
        return False
    return True
