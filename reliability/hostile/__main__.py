"""python -m reliability.hostile [--seconds 60] [--guided-share 0.3] [--save]"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from .. import record
from . import guided
from .campaign import run_again, run_campaign
from .cases import lay_out
from .targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reliability.hostile",
                                     description="Reads damaged files of every kind.")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the whole run")
    parser.add_argument("--seed", type=int, default=0, help="of all damage: equal seeds, equal inputs")
    parser.add_argument("--target", choices=TARGETS, action="append", help="one alone; may be given several times")
    parser.add_argument("--case", type=int, help="with --target: this input alone, and what came of it")
    parser.add_argument("--guided-share", type=float, default=0.3, metavar="SHARE",
                        help="of the time, for inputs grown by coverage, where atheris is installed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="adds what was grown and is worth keeping (corpus.py)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of every target")
    parser.add_argument("--again", metavar="NAME", nargs="+", default=(), help="also the inputs that failed in these records")
    parser.add_argument("--save", nargs="?", const="hostile", metavar="NAME", help="write the record")
    arguments = parser.parse_args()
    targets = arguments.target or list(TARGETS)
    # In memory where there is such a folder: a case makes and removes a dozen small files.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        root = Path(folder)
        lay_out(root)
        if arguments.case is not None:
            return _one_case(root, targets, arguments)
        with record.recording(arguments.save or "hostile", 1, save=arguments.save is not None) as told:
            grown = [row for row, target in guided.GUIDED.items() if target in targets] if guided.is_there() else []
            share = arguments.guided_share if grown else 0.0
            tallies = run_campaign(root, targets, seconds=arguments.seconds * (1 - share), seed=arguments.seed,
                                   rounds=arguments.rounds)
            told["seed"], told["targets"] = arguments.seed, [asdict(tally) for tally in tallies]
            told["atheris"] = version("atheris") if share else None
            told["guided"] = [guided.run_guided(root, row, arguments.seconds * share / len(grown), arguments.keep)
                              for row in grown if share]
            told["again"] = [each for name in arguments.again for again in (run_again, guided.run_again)
                             for each in again(root, record.read(name))]
    failures = [(each["target"], kind, found) for each in (*told["targets"], *told["guided"])
                for kind, found in each["failures"].items()]
    failures += [(each["target"], each["now"], {"case": each["case"], "times": 1, "detail": "again"})
                 for each in told["again"] if each["now"] is not None]
    for target, kind, found in failures:
        print(f"{target}, case {found['case']} ({found['times']} times): {kind}\n    {found['detail']}", file=sys.stderr)
    inputs = sum(each["cases"] for each in (*told["targets"], *told["guided"]))
    print(f"{inputs:,} inputs, {len(failures)} failures")
    return 1 if failures else 0


def _one_case(root: Path, targets: list[str], arguments: argparse.Namespace) -> int:
    import torch

    from .cases import Cases
    from .watch import Watch

    torch.set_num_threads(1)
    cases = Cases(root, TARGETS[targets[0]], arguments.seed, Watch(root / "outside"))
    outcome = cases.run(arguments.case)
    print(outcome)
    return 1 if outcome.is_failure else 0


if __name__ == "__main__":
    sys.exit(main())
