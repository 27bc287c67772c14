"""Full sizes on this machine: checkpoints of random weights in the true 2B, 6B and 16B shapes, loaded and let generate.

    python -m reliability.sizes [--save] [--keep FILE] [2B:bin 2B:safetensors 6B:bin 6B:safetensors 16B:bin]

Writes one checkpoint after another (float16, in the Hub's layout) into the folder of temporary files (TMPDIR), loads it as
float16 where that can fit, int8 and int4, each in a process of its own, and deletes it. It fails where the peak of memory
(anonymous and shared, of the whole process through loading and generation) is above the model's final bytes, one tensor of
the checkpoint and 300 MB, or where tokens do not come. 16B takes 32 GB of disk; where that is not free, as many layers are
written as fit. On a busy machine all of it takes more than an hour: with --keep a run that was stopped goes on, and measures
nothing again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from codegen_fast.config import CodeGenConfig
from codegen_fast.memory import gigabytes, model_bytes
from codegen_fast.weights import layout
from tools.make_checkpoint import SHAPES, config_of

from . import record
from .children import run_module
from .loads import busyness, load, read_plainly

TITLE = "Full sizes"
_PLAN = ("2B:bin", "2B:safetensors", "6B:bin", "6B:safetensors", "16B:bin")
_SLACK = 300_000_000  # of peak memory: the interpreter, torch, scratch of the kernels, the cache of a few tokens
_DISK_SLACK = 3_000_000_000
_WARM_BELOW = 8_000_000_000  # bytes of files that surely stay in the system's cache beside the model


def file_bytes(config: CodeGenConfig) -> int:
    return sum(math.prod(spec.shape) for spec in layout.expected_tensors(config)) * config.dtype.itemsize


def largest_tensor_bytes(config: CodeGenConfig) -> int:
    """Of the checkpoint, in its type."""
    return max(math.prod(spec.shape) for spec in layout.expected_tensors(config)) * config.dtype.itemsize


def layers_that_fit(size: str, free: int) -> int:
    """How deep a checkpoint of that width may be on a disk with so many free bytes."""
    layers = SHAPES[size]["n_layer"]
    while layers > 1 and file_bytes(config_of(size, "float16", layers)) > free - _DISK_SLACK:
        layers -= 1
    return layers


def allowed_bytes(folder: Path, case: dict[str, Any]) -> int:
    """The most memory that a loaded case may have taken: the model, one tensor of the checkpoint, what all processes have."""
    return case["model_bytes"] + largest_tensor_bytes(CodeGenConfig.from_folder(folder)) + _SLACK


def check(case: dict[str, Any]) -> list[str]:
    """What is wrong with a case, in words."""
    if "error" in case:
        wrong = [f"refused: {case['error']}"]
    else:
        too_much = case["peak_bytes"] > case["allowed_bytes"]
        wrong = [f"peak {gigabytes(case['peak_bytes'])}, allowed {gigabytes(case['allowed_bytes'])}"] if too_much else []
        wrong += [] if case["generated"] else ["no tokens, or ids outside the vocabulary"]
    return [f"{case['model']} {case['layout']} {case['type']}: {text}" for text in wrong]


def measure(folder: Path, size: str, file_layout: str, quantization: str | None, *, cold: bool) -> dict[str, Any]:
    """A plain reading of the files, then a load of them."""
    case = {"model": size, "layout": file_layout, "type": quantization or "float16", "cold": cold}
    read = read_plainly(folder, cold=cold)
    case |= load(folder, quantization, cold=cold)
    case |= {"read_seconds": read["seconds"], "read_cpu_seconds": read["cpu_seconds"], "file_bytes": read["nbytes"]}
    if "error" not in case:
        case["share_of_reading"] = case["read_seconds"] / case["load_seconds"]
        case["allowed_bytes"] = allowed_bytes(folder, case)
    return case


def types_of(config: CodeGenConfig) -> list[str | None]:
    """float16 where it can fit this machine at all, then int8 and int4."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fits = model_bytes(config, torch.float16) < 0.9 * total
    return [None, "int8", "int4"] if fits else ["int8", "int4"]


class Kept:
    """The cases measured so far, one JSON object a line of a file; of none where that is None."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.cases = [json.loads(line) for line in lines]

    def has(self, **wanted: Any) -> bool:
        return any(all(case[key] == value for key, value in wanted.items()) for case in self.cases)

    def add(self, case: dict[str, Any]) -> None:
        self.cases.append(case)
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(json.dumps(case) + "\n")


def measure_missing(work: Path, size: str, file_layout: str, layers: int | None, kept: Kept) -> None:
    """Writes a checkpoint, measures those of its cases that are not kept yet, and deletes it."""
    whole = config_of(size, "float16", layers)
    missing = [(quantization, cold) for quantization in types_of(whole) for cold in (True, False)
               if (cold or file_bytes(whole) < _WARM_BELOW)
               and not kept.has(model=size, layout=file_layout, type=quantization or "float16", cold=cold)]  # fmt: skip
    if not missing:
        return
    folder = work / f"{size}-{file_layout}"
    write_checkpoint(folder, size, file_layout, layers or layers_that_fit(size, shutil.disk_usage(work).free))
    for quantization, cold in missing:
        kept.add(measure(folder, size, file_layout, quantization, cold=cold))
    shutil.rmtree(folder)


def write_checkpoint(folder: Path, size: str, file_layout: str, layers: int) -> None:
    run_module("tools.make_checkpoint", size, str(folder), "--format", file_layout, "--layers", str(layers), check=True)


def refusal(work: Path, size: str) -> str | None:
    """What float16 is told that is larger than this machine, by its config.json alone; None where it would fit."""
    config = config_of(size, "float16")
    if None in types_of(config):
        return None
    folder = work / f"codegen-{size}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return load(folder, None, cold=False).get("error", "it was loaded").replace(f"{work}/", "")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.sizes", description=__doc__.splitlines()[0])
    parser.add_argument("plan", nargs="*", default=_PLAN, metavar="SIZE:LAYOUT", help=f"in order (default {' '.join(_PLAN)})")
    parser.add_argument("--layers", type=int, help="depth of all of them, for a trial")
    parser.add_argument("--keep", type=Path, help="file of the cases that were measured, one a line: goes on from there")
    parser.add_argument("--save", action="store_true", help="write the record")
    args = parser.parse_args()
    plan = [name.split(":") for name in args.plan]
    kept = Kept(args.keep)
    earlier = len(kept.cases)
    with (tempfile.TemporaryDirectory(prefix="sizes-") as work,
          record.recording("sizes", torch.get_num_threads(), save=args.save) as found):  # fmt: skip
        told = {size: refusal(Path(work), size) for size in dict(plan)}
        for size, file_layout in tqdm(plan, desc="Checkpoints", unit="checkpoint"):
            measure_missing(Path(work), size, file_layout, args.layers, kept)
        found["cases"], found["cases_of_earlier_runs"] = kept.cases, earlier
        found["refusals"] = [{"model": size, "text": text} for size, text in told.items() if text is not None]
        found["wrong"] = [text for case in kept.cases for text in check(case)]
        found["wrong"] += [f"{each['model']} float16: {each['text']}" for each in found["refusals"]
                           if "quantization='int8'" not in each["text"]]  # fmt: skip
    for text in found["wrong"]:
        print(text, file=sys.stderr)
    return 1 if found["wrong"] else 0


def section(found: dict[str, Any]) -> str:
    def seconds(case: dict[str, Any], what: str) -> str:
        cpu = case.get(f"{what}_cpu_seconds")
        return f"{case[f'{what}_seconds']:.1f}" + ("" if cpu is None else f" ({cpu:.1f})")

    lines = ["Random float16 checkpoints in the true shapes, written shard by shard as the Hub has them "
             "(`tools/make_checkpoint.py`), each load in a process of its own, in turn with a plain reading of the same files. "
             "Peak: anonymous and shared memory of the whole process, sampled every 2 ms through loading and 5 tokens; allowed "
             "are the model, one tensor of the checkpoint and 300 MB.\n",
             "| model, layout | type | model GB | peak GB | allowed GB | files | load s (CPU s) | plain reading s (CPU s) | "
             "share of plain reading | tokens/s |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for case in found["cases"]:
        if "error" in case:
            lines.append(f"| {case['model']} {case['layout']} | {case['type']} | refused: {case['error']} |")
            continue
        speed = case["tokens_per_second"]
        lines.append(
            f"| {case['model']} {case['layout']} | {case['type']} | {case['model_bytes'] / 1e9:.2f} | "
            f"{case['peak_bytes'] / 1e9:.2f} | {case['allowed_bytes'] / 1e9:.2f} | {'cold' if case['cold'] else 'warm'} | "
            f"{seconds(case, 'load')} | {seconds(case, 'read')} | {100 * case['share_of_reading']:.0f}% | "
            f"{f'{speed:.1f}' if speed > 0 else 'lost in noise'} |")
    lines.append("")
    for size in dict.fromkeys(case["model"] for case in found["cases"]):
        written = min(case["file_bytes"] for case in found["cases"] if case["model"] == size)
        if written < 0.99 * file_bytes(config_of(size, "float16")):
            lines.append(f"{size} was cut in depth to {written / 1e9:.1f} GB, which is what the disk had room for.\n")
    lines.append(f"{busyness(found['cases'], found['machine']['cores'])} Seconds in which a process was stopped from outside "
                 "are not counted.\n")
    if found["cases_of_earlier_runs"]:
        lines.append(f"{found['cases_of_earlier_runs']} of the {len(found['cases'])} rows were measured by runs of this command "
                     "that were stopped, and gone on with (`--keep`): the seconds below are the last run's.\n")
    for told in found["refusals"]:
        lines.append(f"{told['model']} in float16 is refused before anything is read: \"{told['text']}\"\n")
    lines.append("Nothing was wrong." if not found["wrong"] else "Wrong: " + "; ".join(found["wrong"]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
