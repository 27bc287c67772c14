"""Train the demo model for a given wall-clock time, resumably.

    python train.py --work DIR --minutes 85

The learning rate follows the share of the time budget that is used, so the run ends on time, fully decayed, however
busy the machine is. `DIR/checkpoint.pt` is written every few minutes and at SIGTERM; the same command continues from
it, and a different `--minutes` plans the rest anew. Every report is a line of `DIR/train.log` as well.
"""
import argparse
import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from model import CodeGen, Config
from muon import Muon
from workers import Workers

# Share of the rows of a batch. Snippets are functions and small classes that begin a text, as a prompt does.
MIX = {"library": 0.33, "tests": 0.27, "library_snippets": 0.20, "tests_snippets": 0.20}
BATCH_TOKENS, MICRO_TOKENS = 8192, 1024  # small pieces: they stay near the cache, and a worker is soon free again
CONTEXTS = ((0.0, 512), (0.85, 1024))    # (from this share of the time on, tokens a row)
WARMUP, DECAY = 0.01, 0.35               # the learning rate rises, stays, and falls linearly to 0 from DECAY on
RATES = {"matrix": 0.015, "embedding": 4e-3, "head": 2e-3, "vector": 3e-3}


class Rows:
    """Draws training rows of `length` tokens."""

    def __init__(self, work, rng):
        self.rng = rng
        self.sets = {name: dict(np.load(work / f"{name}.npz")) for name in MIX}

    def snippet_row(self, ids, starts, length):
        """Whole snippets in random order; the first one begins the row, as a prompt begins a text."""
        ends = np.append(starts[1:], len(ids))
        row = []
        while sum(map(len, row)) < length:
            i = self.rng.integers(len(starts))
            row.append(ids[starts[i]:ends[i]])
        return np.concatenate(row)[:length]

    def file_row(self, ids, starts, length):
        """A window at a random place, or (one in seven) at the beginning of a file."""
        at = self.rng.integers(len(ids) - length)
        if self.rng.random() < 1 / 7:
            at = min(starts[np.searchsorted(starts, at, "right") - 1], len(ids) - length)
        return ids[at:at + length]

    def batch(self, rows, length):
        """int64 (rows, length)."""
        names = self.rng.choice(list(MIX), rows, p=list(MIX.values()))
        return np.stack([(self.snippet_row if n.endswith("snippets") else self.file_row)(**self.sets[n], length=length)
                         for n in names]).astype(np.int64)


def optimizers(model):
    """Muon for the matrices of the blocks, AdamW for the rest; every group remembers its peak rate as `peak`."""
    matrices = [(n, p) for n, p in model.h.named_parameters() if p.dim() == 2]
    muon = Muon([{"params": [p for n, p in matrices if "qkv" in n], "parts": 3},
                 {"params": [p for n, p in matrices if "qkv" not in n]}], lr=RATES["matrix"], weight_decay=0.1)
    vectors = [p for p in model.parameters() if p.dim() == 1]
    adam = torch.optim.AdamW([{"params": [model.wte.weight], "lr": RATES["embedding"]},
                              {"params": [model.lm_head.weight], "lr": RATES["head"]},
                              {"params": vectors, "lr": RATES["vector"]}], betas=(0.9, 0.95), weight_decay=0.0)
    for group in muon.param_groups + adam.param_groups:
        group["peak"] = group["lr"]
    return muon, adam


def rate(used):
    """Learning rate, relative to its peak, at a share of the time budget."""
    return min(1.0, used / WARMUP + 0.01, max(0.0, (1 - used) / (1 - DECAY)))


def save(file, state):
    """Write beside and rename: a checkpoint is whole or absent."""
    torch.save(state, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=85)
    parser.add_argument("--workers", type=int, default=2, help="processes, one core each")
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a second thread here would spin at the cost of the workers
    torch.manual_seed(args.seed)
    config = Config()
    model = CodeGen(config)
    muon, adam = optimizers(model)
    rng = np.random.default_rng(args.seed)
    done = {"step": 0, "tokens": 0, "seconds": 0.0}
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        done = state["done"]
        rng.bit_generator.state = json.loads(state["rng"])
    rows = Rows(args.work, rng)
    workers = Workers(model, args.workers)
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))

    budget = args.minutes * 60
    mean, reported, saved = None, (done["tokens"], time.monotonic()), time.monotonic()
    log = open(args.work / "train.log", "a", buffering=1)
    while not stop and done["seconds"] < budget:
        began = time.monotonic()
        used = done["seconds"] / budget
        length = [n for start, n in CONTEXTS if used >= start][-1]
        loss = workers.gradient([rows.batch(MICRO_TOKENS // length, length + 1)
                                 for _ in range(BATCH_TOKENS // MICRO_TOKENS)])
        for optimizer in (muon, adam):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(used)
            optimizer.step()
        done["step"] += 1
        done["tokens"] += BATCH_TOKENS
        done["seconds"] += time.monotonic() - began
        mean = loss if mean is None else mean + 0.05 * (loss - mean)

        now = time.monotonic()
        if done["step"] % 20 == 0 or done["seconds"] >= budget:
            speed = (done["tokens"] - reported[0]) / (now - reported[1])
            reported = (done["tokens"], now)
            line = (f"step {done['step']}  tokens {done['tokens'] / 1e6:.2f}M  loss {mean:.4f}  {speed:.0f} tokens/s  "
                    f"used {100 * done['seconds'] / budget:.1f}%  ETA {(budget - done['seconds']) / 60:.1f} min")
            print(line, flush=True)
            log.write(line + "\n")
        if now - saved > args.save_every * 60 or stop or done["seconds"] >= budget:
            saved = now
            save(checkpoint, {"config": asdict(config), "model": model.state_dict(), "muon": muon.state_dict(),
                              "adam": adam.state_dict(), "done": done, "rng": json.dumps(rng.bit_generator.state)})
    workers.close()


if __name__ == "__main__":
    main()
