"""codegen-fast eval: its commands."""

from __future__ import annotations

import argparse

from .options import UsageError


def run(arguments: argparse.Namespace) -> int:
    if arguments.eval_command in ("humaneval", "mtpb"):
        from .eval_runs import run_benchmark

        return run_benchmark(arguments)
    if arguments.eval_command == "perplexity":
        from .eval_perplexity import run_perplexity

        return run_perplexity(arguments)
    if arguments.eval_command == "compare":
        from ..evaluation.comparison import compare
        from ..evaluation.tables import comparison_table
        from .output import emit

        differences = compare(arguments.first, arguments.second, arguments.k)
        emit(comparison_table(arguments.first, arguments.second, differences))
        return 0
    raise UsageError("no command is given: expected humaneval, mtpb, perplexity or compare (see codegen-fast eval "
                     "--help)")
