"""What this GPU can do, measured in the run that uses it: read stream, copy, large products of every type."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import torch

from bench.clock import Timing
from bench.gpu.clock import Clock, Contestant

STREAM_BYTES = 4 << 30
GEMM = 8192


def measure(clock: Clock, *, gemms: bool = True) -> dict[str, float]:
    """Bytes a second: read (the best of our kernel and torch's sum), copy (read + written). Operations a second:
    float16, bfloat16, int8 (torch._int_mm).
    """
    return _memory(clock) | (_arithmetic(clock) if gemms else {})


def _memory(clock: Clock) -> dict[str, float]:
    nbytes = STREAM_BYTES if clock.device.type == "cuda" else 1 << 16
    data = torch.randint(1, 2**31 - 1, (nbytes // 4,), dtype=torch.int32, device=clock.device)
    floats, other = data.view(torch.float32), torch.empty_like(data)
    readers = {"read_torch_sum": lambda: torch.sum(floats)}
    if clock.device.type == "cuda":
        readers |= _our_readers(data)
    found = {name: nbytes / _best(clock, name, read) for name, read in readers.items()}
    found["read"] = max(found.values())
    found["copy"] = 2 * nbytes / _best(clock, "copy", lambda: other.copy_(data))
    return found


def _arithmetic(clock: Clock) -> dict[str, float]:
    n = GEMM if clock.device.type == "cuda" else 64
    found = {}
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (torch.randn(n, n, device=clock.device).to(dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        found[name] = 2 * n**3 / _best(clock, name, partial(torch.matmul, a, b.T), replays=20)
    a, b = (torch.randint(-127, 128, (n, n), device=clock.device, dtype=torch.int8) for _ in range(2))
    found["int8"] = 2 * n**3 / _best(clock, "int8", partial(torch._int_mm, a, b.T), replays=20)
    return found


def _best(clock: Clock, name: str, call, replays: int = 40) -> float:
    """Median seconds of a call that is long enough to be launched by itself; without meaning in a rehearsal."""
    samples = clock.race([Contestant(name, call, 1)], replays)[name]
    return Timing.of(samples).median if samples else 1.0


def _our_readers(data: torch.Tensor) -> dict:
    """read_stream.cu with several grids; nothing where it does not compile, and torch's sum decides."""
    source = Path(__file__).with_name("read_stream.cu")
    library = Path(tempfile.mkdtemp()) / "libread_stream.so"
    major, minor = torch.cuda.get_device_capability(data.device)
    flags = ["-O3", f"-arch=sm_{major}{minor}", "-shared", "-Xcompiler", "-fPIC"]
    done = subprocess.run(["nvcc", *flags, "-o", str(library), str(source)], capture_output=True, text=True)
    if done.returncode:
        print(f"{source.name} does not compile, the read ceiling is torch's sum: {done.stderr.strip()}")
        return {}
    read_stream = ctypes.CDLL(str(library)).read_stream
    read_stream.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    never = torch.zeros(1, dtype=torch.int32, device=data.device)
    multiprocessors = torch.cuda.get_device_properties(data.device).multi_processor_count

    def reader(blocks: int):
        def read() -> None:
            error = read_stream(data.data_ptr(), data.nbytes, never.data_ptr(), blocks,
                                torch.cuda.current_stream().cuda_stream)  # fmt: skip
            if error:
                raise RuntimeError(f"read_stream: CUDA error {error}")

        return read

    return {f"read_own_{each}_blocks_a_multiprocessor": reader(each * multiprocessors) for each in (2, 4, 16)}
