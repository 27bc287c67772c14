"""What the commands' arguments are made of: ranges, expressions, the options that several commands have.
"""

from __future__ import annotations

import argparse
import math
import re
from typing import Callable, NoReturn


# As codegen_fast.quantization has them; not imported from there, since that takes torch.
QUANTIZATIONS = ("none", "int8", "int8-row", "int4", "int4-g64", "int4-g128")


class UsageError(ValueError):
    """A command line that cannot be understood."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse would print the usage too, and exit.
        raise UsageError(f"{message} (see {self.prog} --help)")


def make_parser(make: Callable[..., argparse.ArgumentParser], *args: str, **options: str) -> argparse.ArgumentParser:
    return make(*args, **options, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_how_to_run(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Type, device and threads; returns their group."""
    model = parser.add_argument_group("model")
    model.add_argument("--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto",
                       help="type of the weights (default: auto, the checkpoint's)")
    model.add_argument("--quantization", choices=QUANTIZATIONS, default="none",
                       help="int8 takes half the memory of float16, int4 about a third (CPU only; a scale for every 32 "
                            "columns, or 64 or 128) (default: none)")
    model.add_argument("--device", default="auto", metavar="DEVICE",
                       help="cpu, cuda or cuda:1 (default: auto, a GPU where one can be used, else the CPU)")
    model.add_argument("--threads", type=integer(1, 256), metavar="N", help="CPU threads (default: torch's)")
    return model


def add_model(parser: argparse.ArgumentParser, default: str | None, text: str) -> None:
    parser.add_argument("--model", default=default, metavar="MODEL",
                        help=f"folder of a checkpoint, or a Hugging Face Hub id {text}".replace(" ;", ";"))


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    allowed = f"an integer of {low} or more" if high is None else f"an integer from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse


def number(low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """above: low itself is not allowed."""
    if high < math.inf:
        allowed = f"a number from {low} to {high}"
    else:
        allowed = f"a number above {low}" if above else f"a number of {low} or more"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}") from None
        if not low <= value <= high or value == math.inf or (above and value == low):  # NaN fails the first
            raise argparse.ArgumentTypeError(f"{text} is not {allowed}")
        return value

    return parse


def expression(text: str) -> str:
    try:
        matches_nothing = re.search(text, "", re.MULTILINE) is not None
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    if matches_nothing:
        raise argparse.ArgumentTypeError(f"{text!r} matches an empty text: every sample would end at once")
    return text
