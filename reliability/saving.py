"""Saves: killed at random moments, loaded again in every state, read by transformers, and how long they take to load.

    python -m reliability.saving [--save] [--kills 30] [--size 350M]

It fails where a killed save leaves anything but the old model or the new, bit for bit; where a saved model does not give the
logits and tokens of the one that was saved; where transformers does not give the tokens of an unquantised save; or where
loading one takes more memory than the model, one tensor and 300 MB.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from codegen_fast import AutoModelForCausalLM
from codegen_fast.demo import demo_model_path
from tools.make_checkpoint import SHAPES

from . import record
from .children import run_module
from .loads import busyness, load, read_plainly
from .sizes import allowed_bytes

TITLE = "Saving"
_RUNS = 3  # of everything that is timed
_IDS = torch.arange(100, 132)[None]

# States of one model: what from_pretrained is asked for, and what save_pretrained is. Small shards: more files to mix up.
_STATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32, 4 shards": ({"dtype": "float32"}, {"max_shard_size": "5MB"}),
    "float16": ({"dtype": "float16"}, {}),
    "float16, packed": ({"dtype": "float16"}, {"packed": True}),
    "int8, packed": ({"dtype": "float16", "quantization": "int8"}, {}),
    "int8, rows": ({"dtype": "float16", "quantization": "int8"}, {"packed": False, "max_shard_size": "2MB"}),
    "int8-row, packed": ({"dtype": "bfloat16", "quantization": "int8-row"}, {}),
    "int4, packed": ({"dtype": "float32", "quantization": "int4"}, {"max_shard_size": "2MB"}),
}


class Saver:
    """The states of the demo model, saved into one folder by processes that may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models = {name: AutoModelForCausalLM.from_pretrained(demo_model_path(), device="cpu", **asked)
                       for name, (asked, _) in _STATES.items()}  # fmt: skip
        self.logits = {name: model(_IDS).logits for name, model in self.models.items()}

    def save(self, name: str) -> float:
        """Saves in a process of its own. Returns the seconds it took."""
        begin = time.perf_counter()
        self._end(self._start(name))
        return time.perf_counter() - begin

    def save_killed(self, name: str, after: float) -> bool:
        """Saves in a process of its own, killed after so many seconds. Whether it was not at its end by then."""
        child = self._start(name)
        time.sleep(after)
        os.kill(child, signal.SIGKILL)  # of a process that has ended and was not waited for yet, it says nothing
        return self._end(child) == signal.SIGKILL

    def _start(self, name: str) -> int:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                self.models[name].save_pretrained(self.folder, **_STATES[name][1])
                status = 0
            finally:
                os._exit(status)
        return child

    @staticmethod
    def _end(child: int) -> int:
        """The signal that ended it, or 0."""
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status > 0:
            raise RuntimeError("a save that was not killed failed")
        return -status

    def found(self, candidates: set[str]) -> str | None:
        """Which of the states now stands in the folder: the one whose logits it gives and whose type it has."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, device="cpu")
        for name in candidates:
            same = (model.dtype, model.quantization) == (self.models[name].dtype, self.models[name].quantization)
            packed = _STATES[name][1].get("packed", model.quantization is not None)
            if same and packed == (model.config.packed is not None) and torch.equal(model(_IDS).logits, self.logits[name]):
                return name
        return None


def kill_saves(work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Saves over another state are killed at a random moment of their time, until so many were not at their end by then."""
    saver, rng, folder = Saver(work / "at" / "killed"), random.Random(seed), work / "at" / "killed"
    names = list(_STATES)
    seconds = {name: statistics.median(saver.save(name) for _ in range(_RUNS)) for name in names}
    states = {name: saver.found({name}) == name for name in names if saver.save(name)}
    (folder / "tokenizer.json").write_text("mine")
    now, counts, mixed, ended = names[-1], {"old": 0, "new": 0}, 0, 0
    progress = tqdm(total=kills, desc="Killed saves", unit="save")
    while progress.n < kills:
        new = rng.choice([name for name in names if name != now])
        killed = saver.save_killed(new, rng.uniform(0, 1.1 * seconds[new]))
        left = saver.found({now, new} if killed else {new})
        progress.update(killed)
        ended += not killed
        if left is None or (folder / "tokenizer.json").read_text() != "mine":
            mixed += 1
            saver.save(now)
            continue
        if killed:
            counts["new" if left == new else "old"] += 1
        now = left
    progress.close()
    saver.save(now)
    leftover = sorted(path.name for path in folder.parent.iterdir() if path != folder)
    return {"kills": kills, "ended_before_the_kill": ended, **counts, "mixed": mixed,
            "left_behind_after_the_next_save": leftover, "save_seconds": seconds, "states_that_come_back": states}  # fmt: skip


def transformers_tokens(work: Path) -> dict[str, bool]:
    """Whether transformers gives, from our save, the greedy tokens that we give, in float32."""
    import transformers

    same = {}
    for dtype in ("float32", "float16", "bfloat16"):
        ours = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=dtype, device="cpu")
        ours.save_pretrained(work / dtype)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(work / dtype, dtype=torch.float32)
        asked = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones_like(_IDS)}
        again = AutoModelForCausalLM.from_pretrained(work / dtype, dtype="float32", device="cpu")
        same[dtype] = torch.equal(theirs.generate(_IDS, **asked), again.generate(_IDS, **asked))
    return same


def time_loads(work: Path, size: str) -> list[dict[str, Any]]:
    """From the original, from a save in rows, from a packed save: each some times, after a plain reading of its files."""
    original = work / "original"
    run_module("tools.make_checkpoint", size, str(original), check=True)
    cases = []
    for quantization in (None, "int8", "int4"):
        model = AutoModelForCausalLM.from_pretrained(original, quantization=quantization, device="cpu")
        folders = {"original": original}
        for name, packed in (("rows", False), ("packed", True)):
            folders[name] = work / f"{quantization}-{name}"
            model.save_pretrained(folders[name], packed=packed)
        del model
        for name, folder in folders.items():
            for cold in (True, False):
                runs = []
                for _ in range(_RUNS):
                    read = read_plainly(folder, cold=cold)
                    runs.append({"read_seconds": read["seconds"], "read_cpu_seconds": read["cpu_seconds"],
                                 **load(folder, quantization if name == "original" else None, cold=cold)})  # fmt: skip
                cases.append({"type": quantization or "float16", "from": name, "cold": cold, "file_bytes": read["nbytes"],
                              "allowed_bytes": allowed_bytes(original, runs[0]), "runs": runs})  # fmt: skip
        for name in ("rows", "packed"):
            for path in folders[name].iterdir():
                path.unlink()
    return cases


def wrongs(found: dict[str, Any]) -> list[str]:
    killed = found["killed"]
    wrong = [f"{killed['mixed']} killed saves left neither the old nor the new"] if killed["mixed"] else []
    wrong += [f"left behind: {killed['left_behind_after_the_next_save']}"] if killed["left_behind_after_the_next_save"] else []
    wrong += [f"{name} does not come back" for name, same in killed["states_that_come_back"].items() if not same]
    wrong += [f"transformers gives other tokens in {dtype}" for dtype, same in found["transformers"].items() if not same]
    for case in found["loads"]:
        first = next(each for each in found["loads"] if each["type"] == case["type"])
        label = f"{case['type']} from {case['from']}"
        if any(run["tokens"] != first["runs"][0]["tokens"] or not run["generated"] for run in case["runs"]):
            wrong.append(f"{label} gives other tokens than {first['from']}")
        peak = max(run["peak_bytes"] for run in case["runs"])
        if peak > case["allowed_bytes"]:
            wrong.append(f"{label} takes {peak} bytes, allowed {case['allowed_bytes']}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.saving", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--size", choices=SHAPES, default="350M", help="whose loads are timed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--save", action="store_true", help="write the record")
    args = parser.parse_args()
    threads = torch.get_num_threads()
    with (tempfile.TemporaryDirectory(prefix="saving-") as work,
          record.recording("saving", threads, save=args.save) as found):  # fmt: skip
        found["size"] = args.size
        torch.set_num_threads(1)  # torch's own pool does not outlive a fork
        found["killed"] = kill_saves(Path(work), args.kills, args.seed)
        torch.set_num_threads(threads)
        found["transformers"] = transformers_tokens(Path(work))
        found["loads"] = time_loads(Path(work), args.size)
        found["wrong"] = wrongs(found)
    for text in found["wrong"]:
        print(text, file=sys.stderr)
    return 1 if found["wrong"] else 0


def section(found: dict[str, Any]) -> str:
    killed, seconds = found["killed"], found["killed"]["save_seconds"].values()
    same = [dtype for dtype, equal in found["transformers"].items() if equal]
    runs = [run for case in found["loads"] for run in case["runs"]]
    lines = [
        f"{killed['kills']} saves of the demo model, each over a save of another state ({len(_STATES)} states: "
        f"{'; '.join(_STATES)}), were ended by `kill -9` at a random moment of their "
        f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f} ms ({killed['ended_before_the_kill']} more had ended before it, "
        f"and do not count). The folder then held the old model {killed['old']} times and "
        f"the new {killed['new']} times, by its logits bit for bit, and anything else {killed['mixed']} times. "
        "`tests/test_save_replacement.py` kills a save at every single request that it makes to the disk.\n",
        "The limit of that: it takes a system that exchanges the names of two folders (Linux). Into the working directory, a "
        "mount point, a folder whose parent may not be written, or elsewhere, the files are renamed one after another, "
        "`config.json` first and last: a kill within these renames leaves neither the old nor the new but a folder without "
        "`config.json`, which no reader takes for a model, and never a mixture (tried at every request as well). An error in the "
        "middle takes them back.\n",
        f"transformers loads the unquantised saves and gives the same greedy tokens: {', '.join(same)}.\n",
        f"Loading the {found['size']} shape (random weights) from the float16 original, from a save in rows "
        "(`packed=False`), and from one that holds the weights packed as the CPU kernels read them, each after a plain reading "
        f"of the same files. Seconds are medians of {len(found['loads'][0]['runs'])} runs, in brackets of processor time; "
        "peaks are the largest:\n",
        "| type | from | file GB | files | load s (CPU s) | plain reading s (CPU s) | peak GB | allowed GB |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for case in found["loads"]:
        median = {what: statistics.median(run[what] for run in case["runs"])
                  for what in ("load_seconds", "load_cpu_seconds", "read_seconds", "read_cpu_seconds")}  # fmt: skip
        lines.append(
            f"| {case['type']} | {case['from']} | {case['file_bytes'] / 1e9:.2f} | {'cold' if case['cold'] else 'warm'} | "
            f"{median['load_seconds']:.2f} ({median['load_cpu_seconds']:.2f}) | {median['read_seconds']:.2f} "
            f"({median['read_cpu_seconds']:.2f}) | {max(run['peak_bytes'] for run in case['runs']) / 1e9:.2f} | "
            f"{case['allowed_bytes'] / 1e9:.2f} |")
    lines.append(f"\n{busyness(runs, found['machine']['cores'])}\n")
    lines.append("Nothing was wrong." if not found["wrong"] else "Wrong: " + "; ".join(found["wrong"]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
