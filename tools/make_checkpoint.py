"""Random weights in the true shapes of a CodeGen model, to measure loading, memory and speed without a download.

    python tools/make_checkpoint.py 6B FOLDER [--dtype float16] [--format safetensors|bin] [--shard-gb 10] [--layers N] [--seed 0]

Writes one shard after another, with the memory of one chunk, as fast as the disk takes it. Files are cut as transformers
cut those on the Hub, at 10 GB: 2B is one file, 6B two, 16B four, in .bin as most repositories have it. FOLDER must be new,
and outside this repository: 350M takes 0.7 GB in float16, 2B 5.6, 6B 14, 16B 32. It is written beside its place and
renamed when it is whole. --layers cuts the depth, and with it the size, where a disk has no room for all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Iterator

import torch
from torch.serialization import set_default_mmap_options, skip_data
from tqdm import tqdm

from codegen_fast.config import WEIGHT_DTYPES, CodeGenConfig
from codegen_fast.weights import layout
from codegen_fast.weights.safetensors_writer import Entry, index_json, shard, write_safetensors

SHAPES = {
    "350M": {"n_layer": 20, "n_head": 16, "n_embd": 1024, "rotary_dim": 32},
    "2B": {"n_layer": 32, "n_head": 32, "n_embd": 2560, "rotary_dim": 64},
    "6B": {"n_layer": 33, "n_head": 16, "n_embd": 4096, "rotary_dim": 64},
    "16B": {"n_layer": 34, "n_head": 24, "n_embd": 6144, "rotary_dim": 64},
}
CHUNK_ELEMENTS = 1 << 22
HUB_SHARD_GB = 10.0  # transformers' own limit when the models were uploaded


class Noise:
    """Random values in sizes that keep activations in float16's range at any depth.

    Matrices are read from places of one block of normal numbers, each chunk from another: 16 billion draws would take
    minutes, and neither kernels nor quantisation can tell.
    """

    def __init__(self, seed: int, dtype: torch.dtype, bar: tqdm) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype
        self._bar = bar
        self._block = (0.02 * self._normal(4 * CHUNK_ELEMENTS)).to(dtype)

    def values(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """The tensor's elements in order, in flat chunks."""
        count = math.prod(shape)
        for start in range(0, count, CHUNK_ELEMENTS):
            n = min(CHUNK_ELEMENTS, count - start)
            if len(shape) == 1:  # norms about 1, biases about 0
                chunk = (1 + 0.1 * self._normal(n) if ".ln_" in name and name.endswith("weight") else
                         0.02 * self._normal(n)).to(self._dtype)
            else:
                place = int(torch.randint(self._block.numel() - n + 1, (), generator=self._generator))
                chunk = self._block[place:place + n]
            yield chunk
            self._bar.update(chunk.nbytes)

    def _normal(self, n: int) -> torch.Tensor:
        return torch.randn(n, generator=self._generator)


def write_bin(path: Path, entries: list[Entry]) -> None:
    """A file of torch.save: laid out without its values, which are then written into the mapped file.

    The checksums in it are of no values; torch does not look at them.
    """
    with skip_data():
        torch.save({entry.name: torch.empty(entry.shape, dtype=entry.dtype) for entry in entries}, path)
    with set_default_mmap_options(mmap.MAP_SHARED):
        mapped = torch.load(path, mmap=True, weights_only=True)
    for entry in entries:
        flat, start = mapped.pop(entry.name).view(-1), 0
        for piece in entry.pieces():
            flat[start:start + piece.numel()] = piece
            start += piece.numel()


def config_of(size: str, dtype_name: str, layers: int | None = None) -> CodeGenConfig:
    """The configuration of a model of SHAPES, or of its first layers."""
    shape = SHAPES[size] if layers is None else {**SHAPES[size], "n_layer": layers}
    return CodeGenConfig.from_dict({
        "model_type": "codegen", "architectures": ["CodeGenForCausalLM"], "vocab_size": 51200, "n_positions": 2048,
        "n_ctx": 2048, "bos_token_id": 1, "eos_token_id": 50256, "torch_dtype": dtype_name, **shape})


def make_checkpoint(folder: Path, size: str, config: CodeGenConfig, file_format: str, shard_bytes: int, seed: int) -> None:
    """Writes config.json and the weights into an existing folder."""
    specs = list(layout.expected_tensors(config))
    total = sum(math.prod(spec.shape) for spec in specs) * config.dtype.itemsize
    stem, write = {"safetensors": ("model", write_safetensors), "bin": ("pytorch_model", write_bin)}[file_format]
    with tqdm(total=total, desc=f"Writing {size}", unit="B", unit_scale=True) as bar:
        noise = Noise(seed, config.dtype, bar)
        entries = [Entry(spec.name, config.dtype, spec.shape, partial(noise.values, spec.name, spec.shape))
                   for spec in specs]
        shards = shard(entries, shard_bytes)
        files = [f"{stem}-{i:05}-of-{len(shards):05}.{file_format}" for i in range(1, len(shards) + 1)]
        files = files if len(files) > 1 else [f"{stem}.{file_format}"]
        for file, part in zip(files, shards, strict=True):
            write(folder / file, part)
    if len(files) > 1:
        (folder / f"{stem}.{file_format}.index.json").write_text(index_json(shards, files))
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=list(WEIGHT_DTYPES), default="float16")
    parser.add_argument("--format", choices=["safetensors", "bin"], default="safetensors")
    parser.add_argument("--shard-gb", type=float, default=HUB_SHARD_GB, help="largest file, in 10^9 bytes")
    parser.add_argument("--layers", type=int, help="depth (by default the model's own)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.folder.resolve()
    if folder.is_relative_to(Path(__file__).resolve().parent.parent):
        parser.error(f"{folder} is inside the repository; choose a folder outside it")
    if folder.exists():
        parser.error(f"{folder} exists; choose a new folder")
    beside = folder.with_name(folder.name + ".partial")
    beside.mkdir(parents=True)
    try:
        make_checkpoint(beside, args.size, config_of(args.size, args.dtype, args.layers), args.format,
                        int(args.shard_gb * 1e9), args.seed)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
