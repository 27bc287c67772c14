"""Inputs that are grown by what of the package they reach: atheris, where it is installed (pip install atheris).

The mutations are this package's own and libFuzzer's in turn, the verdicts are those of the campaign. What fails is told
and gone on from; what kills the process is told by its end.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import tempfile
import zlib
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from .campaign import Tally
from .verdicts import READ, REFUSED
from .worker import Died, Worker, start_python

# Target -> (seed, the file that inputs are written to): those whose bytes our own code parses or checks.
GUIDED = {
    "config.json": ("safetensors", "config.json"),
    "generation_config.json": ("generation_config", "generation_config.json"),
    "index and shards": ("sharded", "model.safetensors.index.json"),
    "torch .bin": ("bin", "pytorch_model.bin"),
    "tokenizer.json": ("tokenizer_json", "tokenizer_config.json"),
    "HumanEval data": ("humaneval", "data.jsonl"),
    "MTPB data": ("mtpb", "data.jsonl"),
    "run gone on with": ("run", "samples-t0.2.jsonl"),
    "run compared": ("run", "summary.json"),
}
_START = "import sys; sys.path.append(sys.argv.pop(1)); from reliability.hostile.guided import main; main()"
_MOST_BYTES = 1 << 16
_GRACE_SECONDS = 600


def is_there() -> bool:
    return find_spec("atheris") is not None


def run_guided(root: Path, target: str, seconds: float) -> dict[str, Any]:
    """A tally, with the branches reached by the seed alone and at the end."""
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryFile() as log:
        seed, name = GUIDED[target]
        (Path(corpus) / "seed").write_bytes((root / "seeds" / seed / name).read_bytes())
        process = start_python(_START, [str(root), target, corpus, str(round(seconds))], stdout=subprocess.PIPE, stderr=log,
                               text=True)
        told, _ = process.communicate(timeout=seconds + _GRACE_SECONDS)
        log.seek(0)
        text = log.read().decode(errors="replace")
    tally = Tally(target, seconds=seconds)
    for line in told.splitlines():
        outcome = json.loads(line)
        tally.add(outcome.pop("number"), outcome)
    covered = [int(number) for number in re.findall(r"^#\d+\s+\w+\s+cov: (\d+)", text, re.MULTILINE)]
    executed = re.search(r"stat::number_of_executed_units:\s+(\d+)", text)
    tally.cases = int(executed[1]) if executed else tally.cases
    if process.returncode != 0:
        tally.died += 1
        last = " / ".join(text.strip().splitlines()[-3:])
        tally.fail(tally.cases, f"the process ended with {process.returncode}: {last}", "")
    return {**asdict(tally), "covered_by_seed": covered[0] if covered else 0, "covered": covered[-1] if covered else 0}


def run_again(root: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """What comes now of what failed by coverage in an earlier record: of the input where it was kept, else (also where the
    process ended) of growing inputs anew for as long as then."""
    told: list[dict[str, Any]] = []
    for tally in found["guided"]:
        for kind, first in tally["failures"].items():
            again = {"record": found["name"], "target": tally["target"], "case": first["case"], "then": kind}
            if "input" in first:
                again["now"] = _replayed(root, tally["target"], zlib.decompress(base64.b64decode(first["input"])))
            elif is_there():
                grown = run_guided(root, tally["target"], tally["seconds"])
                again |= {"now": next(iter(grown["failures"]), None), "seconds": tally["seconds"]}
            else:
                again["now"] = "not tried: atheris is not installed"
            told.append(again)
    return told


def _replayed(root: Path, target: str, data: bytes) -> str | None:
    """What is wrong with the outcome; None if nothing is."""
    worker = Worker(root, 0)
    try:
        kind = worker.read_file(target, *GUIDED[target], data)["kind"]
    except Died as death:
        return str(death)
    finally:
        worker.close()
    return None if kind in (READ, REFUSED) else kind


def main() -> None:
    import atheris
    import torch

    torch.set_num_threads(1)
    if "codegen_fast" in sys.modules:
        raise RuntimeError("the package was imported before it could be instrumented: nothing would be guided")
    with atheris.instrument_imports(include=["codegen_fast"], enable_loader_override=False):
        from .cases import Cases
        from .mutations import mutate_bytes_of
        from .targets import TARGETS
        from .watch import Watch

    root, target, corpus, seconds = sys.argv[1:]
    seed, name = GUIDED[target]
    cases = Cases(Path(root), TARGETS[target], 0, Watch(Path(root) / "outside"))
    told: set[str] = set()
    number = 0

    def read(data: bytes) -> None:
        nonlocal number
        outcome = cases.read_files(seed, name, data)
        number += 1
        if outcome.is_failure and outcome.kind not in told:
            told.add(outcome.kind)
            detail = f"{outcome.detail} of {ascii(data)[:200]}"
            kept = base64.b64encode(zlib.compress(data)).decode()
            print(json.dumps({"number": number, **asdict(outcome), "detail": detail, "input": kept}), flush=True)

    def mutate(data: bytes, most: int, random_state: int) -> bytes:
        rng = Random(random_state)
        if rng.random() < 0.5:
            return atheris.Mutate(data, most)
        return mutate_bytes_of(rng, name, data)[:most]

    atheris.Setup(["guided", f"-max_total_time={seconds}", f"-max_len={_MOST_BYTES}", "-rss_limit_mb=0", "-timeout=600",
                   "-print_final_stats=1", "-seed=1", f"-artifact_prefix={corpus}/", corpus], read, custom_mutator=mutate)
    atheris.Fuzz()
