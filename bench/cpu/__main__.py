"""The CPU backend and its peers, in one run:

    python -m bench.cpu CHECKPOINT --peer-python PYTHON --save NAME
    python -m bench.cpu CHECKPOINT --short
    python -m bench.cpu --render NAME

Engines run in processes of their own, in turns (A B C, C B A), each by the first interpreter that has its packages:
this one, then those of --peer-python. One that is absent or fails is named with its reason. The read bandwidth is
measured in every round, and stands beside what is measured: bytes are counted analytically. CHECKPOINT may hold random
weights (tools/make_checkpoint.py); the peers' own files are written to --work, beside it if nothing is said.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.cpu import catalogue, plots, results, tables
from bench.cpu.kernels import MODELS, TOKENS
from bench.cpu.parts import PARTS, Run
from bench.cpu.pool import Worker
from bench.cpu.residents import Residents

SHORT = {
    "rounds": 2,
    "steps": 12,
    "prefill": [128, 512],
    "parts": ["decode", "prefill", "stages"],
    "ceiling_seconds": 0.1,
}
FULL = {"rounds": 4, "steps": 24, "prefill": [32, 128, 512, 1024], "parts": list(PARTS), "ceiling_seconds": 0.2}


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    if args.render:
        result = results.read(args.render)
        print(tables.markdown(result))
        _draw(result, args.render)
        return 0
    if args.save and not re.fullmatch(r"[\w.-]+", args.save):
        raise SystemExit(f"--save {args.save}: expected a name for a file in bench/results, without folders")
    if args.checkpoint is None:
        raise SystemExit("no checkpoint is given: expected a folder, or --render NAME")
    result = measure(args)
    print(tables.terminal(result))
    if args.save:
        results.write(result, results.path_of(args.save))
        print(f"\n{results.path_of(args.save).relative_to(results.FOLDER.parents[1])}", file=sys.stderr)
        _draw(result, args.save)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all parts that are asked for and gives the result."""
    import torch

    from codegen_fast.memory import available_bytes
    from codegen_fast.ops import FLOAT_KINDS
    from codegen_fast.quantization import QUANTIZATIONS

    known = (*FLOAT_KINDS, *QUANTIZATIONS)
    kinds = args.kinds or [kind for kind in ("float32", "bfloat16", "float16", "int8", "int4") if kind in known]
    unknown = set(kinds) - set(known)
    if unknown:
        raise SystemExit(f"--kinds {' '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    threads = args.threads or torch.get_num_threads()
    folder = args.checkpoint.resolve()
    work = (args.work or folder.with_name(folder.name + "-peers")).resolve()
    try:
        entries = catalogue.chosen(args.engines, peers=not args.no_peers, kinds=kinds)
        interpreters = catalogue.interpreters(entries, args.peer_python)
        model = results.describe_model(folder)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from None
    preset = SHORT if args.short else FULL
    settings = {name: getattr(args, name) or value for name, value in preset.items()}
    fits = model["n_positions"] - settings["steps"] - 2
    settings |= {
        "threads": threads, "decode": [point for point in args.decode if point[1] <= fits], "python": sys.executable,
        "prefill": [length for length in settings["prefill"] if length < model["n_positions"]],
        "cold": args.cold, "cold_rounds": args.cold_rounds, "kernel_models": args.kernel_models,
        "kernel_tokens": args.kernel_tokens, "kernel_kinds": kinds, "kernel_seconds": args.kernel_seconds,
    }  # fmt: skip
    result = results.new_result(results.describe_machine(threads), model, settings)
    residents = Residents(entries, interpreters, folder, work, threads, model, available_bytes() or 1 << 40)
    with tqdm(bar_format="[{elapsed}] {desc}", file=sys.stderr) as bar, \
         Worker(sys.executable, ["ceiling", str(threads)], threads) as ceiling:  # fmt: skip

        def progress(what: str) -> None:
            bar.set_description(what)
            bar.update()

        run = Run(result, residents, ceiling, progress)
        try:
            if set(settings["parts"]) - {"kernels"}:
                warm = [(batch, context, 3) for batch, context in settings["decode"]]
                if "prefill" in settings["parts"]:
                    warm.append((1, max(settings["prefill"]), 1))
                residents.prepare(warm, progress)
            parts = {"decode": run.decode, "prefill": run.prefill, "stages": run.stages,
                     "cold": lambda: run.cold(folder, work), "kernels": run.kernels}  # fmt: skip
            for part in PARTS:
                if part in ("cold", "kernels"):
                    residents.close()  # what they measure is other processes' memory and time
                if part in settings["parts"]:
                    parts[part]()
        except KeyboardInterrupt:  # what there is, is told and saved
            result["interrupted"] = True
        finally:
            residents.close()
    result["engines"] = list(residents.rows.values())
    del settings["python"]  # a path of this machine
    return result


def _draw(result: dict[str, Any], name: str) -> None:
    try:
        paths = plots.draw(result, name)
    except ImportError as error:
        print(f"no plots: {error} (pip install 'codegen_fast[bench]')", file=sys.stderr)
        return
    for path in paths:
        print(path.relative_to(results.FOLDER.parents[1]), file=sys.stderr)


def _point(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise argparse.ArgumentTypeError(f"{text!r}: expected BATCHxCONTEXT, as in 8x32")
    return int(found[1]), int(found[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("checkpoint", type=Path, nargs="?", help="a folder")
    parser.add_argument(
        "--render", metavar="NAME", help="measure nothing; table in Markdown and plots of bench/results/NAME.json"
    )
    parser.add_argument("--save", metavar="NAME", help="write bench/results/NAME.json and plots beside it")
    parser.add_argument(
        "--short", action="store_true", help="fewer rounds, steps and lengths; no cold processes, no kernels"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="logits are compared before any of them but kernels")
    parser.add_argument(
        "--engines", nargs="+", default=[], metavar="TEXT", help="only engines whose name holds one of these"
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument(
        "--peer-python", nargs="+", default=[], metavar="PYTHON", help="interpreters that have the peers' packages"
    )
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="our weight types (all)")
    parser.add_argument(
        "--decode", nargs="+", type=_point, default=[(1, 32), (1, 512), (8, 32)], metavar="BATCHxCONTEXT"
    )
    parser.add_argument("--prefill", nargs="+", type=int, metavar="LENGTH")
    parser.add_argument("--steps", type=int, help="timed steps of one visit")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--ceiling-seconds", type=float, help="for each way to read, in every round")
    parser.add_argument("--threads", type=int, help="of every engine (torch's)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for the peers' files")
    parser.add_argument("--cold", nargs="+", default=["codegen_fast"], metavar="TEXT",
                        help="engines whose cold process is timed, by parts of their names (codegen_fast)")  # fmt: skip
    parser.add_argument("--cold-rounds", type=int, default=4)
    parser.add_argument("--kernel-models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kernel-tokens", nargs="+", type=int, default=list(TOKENS), metavar="ROWS")
    parser.add_argument("--kernel-seconds", type=float, default=0.15, help="of one product")
    return parser


if __name__ == "__main__":
    sys.exit(main())
