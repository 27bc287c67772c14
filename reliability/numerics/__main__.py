from __future__ import annotations

import argparse
from importlib import import_module

import torch
from tqdm import tqdm

from .. import record
from . import PARTS, __doc__ as description
from .drift import TOKENS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m reliability.numerics", description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="steps of drift (default: %(default)s)")
    parser.add_argument("--save", action="store_true", help="write the record; all parts are in it")
    arguments = parser.parse_args()
    if arguments.save and set(arguments.parts) != set(PARTS):
        parser.error("--save goes with all parts")
    if arguments.tokens < 100:
        parser.error("--tokens: expected at least 100")
    torch.set_num_threads(1)
    with record.recording("numerics", 1, save=arguments.save) as found:
        for part in tqdm(arguments.parts):
            module = import_module(f"{__package__}.{part}")
            found[part] = module.measure(tokens=arguments.tokens) if part == "drift" else module.measure()
            tqdm.write(module.lines(found[part]))


if __name__ == "__main__":
    main()
