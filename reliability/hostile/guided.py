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

# Seed and the file of it that inputs are written to: those whose bytes our own code parses or checks. -> target
GUIDED = {
    "safetensors/config.json": "config.json",
    "safetensors/model.safetensors": "safetensors",
    "generation_config/generation_config.json": "generation_config.json",
    "sharded/model.safetensors.index.json": "index and shards",
    "bin/pytorch_model.bin": "torch .bin",
    "int8/config.json": "saved quantised checkpoint",
    "int8/model.safetensors": "saved quantised checkpoint",
    "int4/model.safetensors": "saved quantised checkpoint",
    "packed/config.json": "saved packed checkpoint",
    "packed/model.safetensors": "saved packed checkpoint",
    "tokenizer_json/tokenizer.json": "tokenizer.json",
    "tokenizer_json/tokenizer_config.json": "tokenizer.json",
    "tokenizer_files/vocab.json": "vocab.json and merges.txt",
    "tokenizer_files/merges.txt": "vocab.json and merges.txt",
    "tokenizer_files/added_tokens.json": "vocab.json and merges.txt",
    "humaneval/data.jsonl": "HumanEval data",
    "humaneval_gz/data.jsonl.gz": "HumanEval data",
    "mtpb/data.jsonl": "MTPB data",
    "run/samples-t0.2.jsonl": "run gone on with",
    "run/settings.json": "run gone on with",
    "run/summary.json": "run compared",
}
FAILED = "failed-"  # begins the name of an input that did
_START = "import sys; sys.path.append(sys.argv.pop(1)); from reliability.hostile.guided import main; main()"
_KEEP = "import sys; sys.path.append(sys.argv.pop(1)); from reliability.hostile.corpus import keep_in_process as main; main()"
_MOST_BYTES = 1 << 16
_GRACE_SECONDS = 600


def is_there() -> bool:
    return find_spec("atheris") is not None


def run_guided(root: Path, row: str, seconds: float, kept: Path | None = None) -> dict[str, Any]:
    """A tally, with the branches reached by the seed alone and at the end. kept: a folder for inputs worth keeping."""
    with tempfile.TemporaryDirectory() as corpus, tempfile.TemporaryFile() as log:
        (Path(corpus) / "seed").write_bytes((root / "seeds" / row).read_bytes())
        process = start_python(_START, [str(root), row, corpus, str(max(1, round(seconds)))], stdout=subprocess.PIPE, stderr=log,
                               text=True)
        told, _ = process.communicate(timeout=seconds + _GRACE_SECONDS)
        log.seek(0)
        text = log.read().decode(errors="replace")
        if kept is not None and start_python(_KEEP, [str(root), row, corpus, str(kept)]).wait(_GRACE_SECONDS) != 0:
            raise RuntimeError(f"what was worth keeping of {row} could not be told")
    tally = Tally(row, seconds=seconds)
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
        row = _row_of(tally["target"])
        for kind, first in tally["failures"].items():
            again = {"record": found["name"], "target": tally["target"], "case": first["case"], "then": kind}
            if "input" in first:
                again["now"] = _replayed(root, row, zlib.decompress(base64.b64decode(first["input"])))
            elif is_there():
                grown = run_guided(root, row, tally["seconds"])
                again |= {"now": next(iter(grown["failures"]), None), "seconds": tally["seconds"]}
            else:
                again["now"] = "not tried: atheris is not installed"
            told.append(again)
    return told


def _row_of(name: str) -> str:
    """Earlier records name the target, which had one row."""
    return name if name in GUIDED else next(row for row, target in GUIDED.items() if target == name)


def _replayed(root: Path, row: str, data: bytes) -> str | None:
    """What is wrong with the outcome; None if nothing is."""
    worker = Worker(root, 0)
    try:
        kind = worker.read_file(GUIDED[row], *row.split("/"), data)["kind"]
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

    root, row, corpus, seconds = sys.argv[1:]
    seed, name = row.split("/")
    cases = Cases(Path(root), TARGETS[GUIDED[row]], 0, Watch(Path(root) / "outside"))
    told: set[str] = set()
    number = 0

    def read(data: bytes) -> None:
        nonlocal number
        outcome = cases.read_files(seed, name, data)
        number += 1
        if outcome.is_failure and outcome.kind not in told:
            told.add(outcome.kind)
            (Path(corpus) / f"{FAILED}{number}").write_bytes(data)
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
