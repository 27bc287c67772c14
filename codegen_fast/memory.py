"""How much memory a model takes and how much there is, so that too large a model is refused before it is read."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Iterator

import torch

from . import ops
from .config import WEIGHT_DTYPES, CodeGenConfig
from .quantization import QUANTIZATIONS, packed_kinds


def packed_kind(dtype: torch.dtype, quantization: str | None) -> str:
    """The stored type of the layers' weights: the quantisation, or the name of `dtype`."""
    return quantization or str(dtype).removeprefix("torch.")


def model_bytes(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None = None,
                device: torch.device | str = "cpu") -> int:
    """Bytes of the loaded weights: packed products, embedding in `dtype`, norms and biases in float32."""
    kinds = packed_kinds(dtype, quantization, device)
    packed = {name: ops.packed_weight_nbytes(kinds[name], *shape, device)
              for name, shape in config.packed_shapes().items()}
    d = config.n_embd
    vectors = config.n_layer * (2 * d + config.inner + d) + 2 * d + config.vocab_size
    embedding = config.vocab_size * d * dtype.itemsize
    return config.n_layer * (packed["w_in"] + packed["w_out"]) + packed["lm_head"] + embedding + 4 * vectors


def parameter_count(config: CodeGenConfig) -> int:
    """Parameters of the model, whatever type they are stored in; a tied embedding counts once."""
    d = config.n_embd
    products = {name: sum(sections) * sum(segments) for name, (sections, segments) in config.packed_shapes().items()}
    layer = products["w_in"] + products["w_out"] + config.inner + d + 2 * d
    lm_head = config.vocab_size + (0 if config.tie_word_embeddings else products["lm_head"])
    return config.vocab_size * d + config.n_layer * layer + 2 * d + lm_head


def cache_bytes(config: CodeGenConfig, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of keys and values of `tokens` tokens, in all layers."""
    return 2 * config.n_layer * config.n_embd * dtype.itemsize * tokens


def available_bytes(device: torch.device | str = "cpu") -> int | None:
    """Bytes that can still be allocated on the device; None where the system does not say.

    On Linux the least of MemAvailable and what every control group (a container's limit) leaves.
    """
    device = torch.device(device)
    if device.type == "cuda":
        # What torch holds and nobody uses counts as free.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [n for n in (_meminfo_available(), *_cgroup_available()) if n is not None]
    return min(found) if found else _sysconf_available()


@dataclass(frozen=True)
class Forecast:
    """What a model will take in one type, what there is, and the types nearest to it that fit.

    kind: of the layers' weights. advice: what to do where it does not fit, a clause.
    """

    kind: str
    needed: int
    available: int | None  # None where the system does not say
    advice: str
    where: str = ""  # of which memory, where that is not the machine's

    @property
    def fits(self) -> bool:
        return self.available is None or self.needed <= self.available

    def __str__(self) -> str:
        """As in: needs 32.1 GB, 22.8 GB free; int8 needs 17.3 GB: pass quantization='int8'"""
        needs = f"needs {gigabytes(self.needed)}{self.where}"
        if self.available is None:
            return needs
        advice = "" if self.fits else f"; {self.advice}"
        return f"{needs}, {gigabytes(self.available)} free{advice}"


def forecast(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, *, available: int | None,
             device: torch.device, scratch: int = 0) -> Forecast:
    """Of loading a checkpoint where so many bytes are free. scratch: bytes that loading takes beside the model."""
    needed = model_bytes(config, dtype, quantization, device) + scratch
    advice = []
    if available is not None and needed > available:
        forms = list(_smaller_forms(config, dtype, quantization, device, scratch))
        fitting = [form for form in forms if form[2] <= available]
        for how in ("dtype", "quantization"):  # of each the nearest to what was asked for
            advice += [f"{name} needs {gigabytes(n)}: pass {how}='{name}'" for name, h, n in fitting if h == how][:1]
        if config.quantization is not None:
            advice = [f"it is stored in {config.quantization}, so " + (
                f"load the original with quantization='{fitting[0][0]}', which needs {gigabytes(fitting[0][2])}" if fitting
                else "free some memory or take a smaller model")]
        elif not advice and device.type == "cpu":
            smallest = f"{forms[-1][0]}, the smallest type, needs {gigabytes(forms[-1][2])}" if forms else (
                f"{quantization} is the smallest type")
            advice = [f"{smallest}: free some memory or take a smaller model"]
        if device.type == "cuda":
            advice.append("device='cpu' takes the machine's memory instead")
    return Forecast(packed_kind(dtype, quantization), needed, available, "; ".join(advice),
                    f" of {device}" if device.type == "cuda" else "")


def _smaller_forms(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, device: torch.device,
                   scratch: int) -> Iterator[tuple[str, str, int]]:
    """(name, the argument that names it, bytes) of the types that are smaller than the one asked for, nearest first."""
    if quantization is None:
        for name, other in WEIGHT_DTYPES.items():
            if other.itemsize < dtype.itemsize:
                yield name, "dtype", model_bytes(config, other, None, device) + scratch
    names = ("int8",) if device.type == "cuda" else QUANTIZATIONS
    for name in names[names.index(quantization) + 1:] if quantization in names else names:
        yield name, "quantization", model_bytes(config, dtype, name, device) + scratch


def check_fits(config: CodeGenConfig, dtype: torch.dtype, quantization: str | None, *, device: torch.device,
               scratch: int, where: str) -> None:
    """OSError with both numbers, and what would fit, if the model is larger than the memory that is free.

    scratch: bytes that loading takes beside the model.
    """
    found = forecast(config, dtype, quantization, available=available_bytes(device), device=device, scratch=scratch)
    if not found.fits:
        raise OSError(f"{where} as {found.kind} {found}")


@contextmanager
def named_where_full(device: torch.device) -> Iterator[None]:
    """In the block, an allocation that fails becomes an OSError that says what to do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OSError(f"the memory of {device} is full: ask for fewer rows or tokens at a time, free some of it, or "
                      "use device='cpu'") from error
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for the system's memory.
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        raise OSError("the machine's memory, or what this process may have of it, is full: ask for fewer rows or tokens "
                      "at a time, or free some of it") from error


def gigabytes(n: int) -> str:
    """Three digits: 1234567890 -> "1.23 GB", 32123456789 -> "32.1 GB"."""
    return f"{n / 1e9:.{2 if n < 9.995e9 else 1 if n < 9.995e10 else 0}f} GB"


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _sysconf_available() -> int | None:
    """Without /proc (macOS): the free pages where sysconf names them, else all of the machine's memory."""
    for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if name in os.sysconf_names:
            return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")
    return None


def _cgroup_available(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What each control group above this process leaves: its limit less its use, page cache counted as free.

    In a container the path in /proc/self/cgroup may be the host's, so groups that are not there are passed over.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, limit, usage, cached = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):  # version 1
            mount, limit, usage, cached = (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                           "total_inactive_file")
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        for part in (group, *group.parents):
            left = _group_left(mount / part, limit, usage, cached)
            if left is not None:
                yield left


def _group_left(group: Path, limit_file: str, usage_file: str, cached_key: str) -> int | None:
    try:
        limit = (group / limit_file).read_text().strip()
        usage = int((group / usage_file).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - usage + int(stat.get(cached_key, 0)))
