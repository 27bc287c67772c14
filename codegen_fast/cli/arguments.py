"""The command line's words: commands, options, their ranges and their help. Imports no torch, so that --help is quick.
"""

from __future__ import annotations

import argparse
import math

from .eval_arguments import EVAL_EXAMPLES, add_eval
from .options import Parser, add_how_to_run, add_model, expression, integer, make_parser, number

PROGRAM = "codegen-fast"
# Of a draft, where --prompt-lookup says no number.
LOOKUP_TOKENS = 10

_MAIN_EXAMPLES = """\
examples:
  codegen-fast generate "def fibonacci(n):"
  codegen-fast generate --model Salesforce/codegen-350M-mono --quantization int8 "# bubble sort in Python"
  codegen-fast info --model Salesforce/codegen-16B-mono
  codegen-fast bench --model Salesforce/codegen-350M-mono --quantization int8
  codegen-fast eval humaneval --model Salesforce/codegen-350M-mono --preset paper --out run --allow-code-execution

Errors are one line on standard error, with exit code 2."""

_GENERATE_EXAMPLES = """\
The prompt and its completion go to standard output, as UTF-8; a line with the speed goes to standard error. Of several
samples each is written when it is done, below a line with its number. The prompt is taken as it stands: \\n is a
backslash and an n, and a file's last newline belongs to the prompt.

Without --temperature the most likely token is taken each time, unless --n above 1, --seed, --top-p, --top-k or --min-p
ask for sampling, which is then done at temperature 0.2. Without --seed a seed is drawn; the last line names it. The
demo model, given none of these and no --beams, samples at temperature 0.6 with seed 0: it is too small not to repeat
itself otherwise.

With --stop or --stop-regex a sample ends, and is cut, where its text is complete. Of --beams, --n gives the best ones,
best first, and nothing is shown before the end; sampling options make them draw their tokens. --prompt-lookup changes
no token: drafts that stand in the text already are verified several tokens a call, where that pays.

examples:
  codegen-fast generate "def fibonacci(n):"
  codegen-fast generate --n 3 --seed 1 "class Stack:"
  codegen-fast generate --temperature 0.8 --top-p 0.95 --max-new-tokens 200 --file prompt.py
  codegen-fast generate --stop function "def fibonacci(n):"
  codegen-fast generate --stop-regex "^class " --stop-regex "\\n\\n\\n" --n 2 "class Stack:"
  codegen-fast generate --beams 4 --n 2 --repetition-penalty 1.1 "def fibonacci(n):"
  git show HEAD:setup.py | codegen-fast generate --prompt-lookup=8 -
  codegen-fast generate --model Salesforce/codegen-2B-mono --dtype bfloat16 --threads 8 "def hello_world():"
  codegen-fast generate -- "-- a prompt that begins with dashes"
"""

_INFO_EXAMPLES = """\
The tokens a second are an upper limit: the bandwidth of the memory that the model would lie in (the CPU's is measured,
a GPU's is by its data sheet), divided by the bytes of weights that every token reads. A long context adds the cache's
bytes to that. Only the model's config.json is read.

examples:
  codegen-fast info
  codegen-fast info --model demo
  codegen-fast info --model ./my-checkpoint
"""

_BENCH_EXAMPLES = """\
In under a minute, with random prompts: the bandwidth of the memory, the time to load and to the first token, decoding
at batch 1 and 8, and a prompt of 512 tokens, or as many as there is time for. The limit is what the bandwidth allows:
a step reads all weights and the cache once. Loading is measured with the files as the system has them, cached or not.
Other engines are compared by python -m bench.cpu in the source folder.

examples:
  codegen-fast bench
  codegen-fast bench --model Salesforce/codegen-350M-mono --quantization int8
  codegen-fast bench --model ./my-checkpoint --dtype bfloat16 --threads 4
"""


def build_parser(version: str) -> argparse.ArgumentParser:
    """The parser of all commands. parse_args raises UsageError, and SystemExit(0) after --help and --version."""
    parser = make_parser(Parser, prog=PROGRAM, description="Runs CodeGen models, as fast as the hardware allows.",
                     epilog=_MAIN_EXAMPLES)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_generate(make_parser(commands.add_parser, "generate", help="continue a prompt", epilog=_GENERATE_EXAMPLES,
                          description="Continues a prompt, and shows the text as it comes."))
    _add_info(make_parser(commands.add_parser, "info", help="this machine, and what a model needs and may reach on it",
                      description="Shows this machine: processor, instruction set, threads, memory and the bandwidth "
                                  "of its memory (measured), GPUs. With --model also the model: parameters, context, "
                                  "memory by type, and the tokens a second that the bandwidth allows.",
                      epilog=_INFO_EXAMPLES))
    _add_bench(make_parser(commands.add_parser, "bench", help="how fast a model runs here, and what the memory allows",
                       description="Measures a model on this machine: loading, the first token, decoding, a long "
                                   "prompt, and what share of the memory's limit that is.",
                       epilog=_BENCH_EXAMPLES))
    add_eval(make_parser(commands.add_parser, "eval", help="HumanEval, MTPB, perplexity, and runs against each other",
                         description="Evaluates a model: samples, runs and scores programs; or how well it predicts "
                                     "files.",
                         epilog=EVAL_EXAMPLES))
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT",
                        help="the text to continue; - reads it from standard input; \"\" starts from nothing")
    parser.add_argument("--file", metavar="PATH", help="read the prompt from a UTF-8 file; - is standard input")
    add_model(parser, default="demo", text="(default: demo, the small model that is installed with the package)")
    model = add_how_to_run(parser)
    text = parser.add_argument_group("text")
    text.add_argument("--max-new-tokens", type=integer(1), metavar="N",
                      help="stop after N tokens, or before at the text's end (default: 128, or what the context has "
                           "room for)")
    text.add_argument("--temperature", type=number(0, math.inf), metavar="T",
                      help="0 takes the most likely token; the higher, the more surprising")
    text.add_argument("--top-p", type=number(0, 1), metavar="P",
                      help="sample from the likeliest tokens that have probability P together (default: the model's, "
                           "else 1: all)")
    text.add_argument("--top-k", type=integer(0), metavar="K",
                      help="sample from the K likeliest tokens; 0: from all (default: the model's, else 50)")
    text.add_argument("--min-p", type=number(0, 1), metavar="P",
                      help="sample from tokens at least P times as likely as the likeliest (default: the model's, else "
                           "0: all)")
    text.add_argument("--repetition-penalty", type=number(0, math.inf, above=True), metavar="R",
                      help="above 1: tokens that are there already become less likely (default: the model's, else 1)")
    text.add_argument("--n", type=integer(1, 4096), default=1, metavar="N",
                      help="number of samples, or of the best beams (default: 1)")
    text.add_argument("--seed", type=integer(0, 2**64 - 1), metavar="S", help="the same seed gives the same samples")
    text.add_argument("--beams", type=integer(1), default=1, metavar="N",
                      help="look for the most likely text with N beams (default: 1, which is none)")
    stop = text.add_mutually_exclusive_group()
    stop.add_argument("--stop", choices=("function", "statement", "line", "truncation"),
                      help="stop, and cut the text, where the function, statement or line that the prompt is in (else "
                           "the first new one) is over; truncation: where CodeGen's sampling script cuts")
    stop.add_argument("--stop-regex", type=expression, action="append", metavar="PATTERN",
                      help="stop at a match in the completion, and cut it there; Python's syntax, ^ and $ match at "
                           "every line; may be given several times")
    model.add_argument("--prompt-lookup", type=integer(1), nargs="?", const=LOOKUP_TOKENS, metavar="N",
                       help="draft at most N tokens from the text so far and verify them in one call (N: "
                            f"{LOOKUP_TOKENS} where it is left out; then put the prompt before this option)")


def _add_info(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default=None, text="; demo is the small model that is installed with the package")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add_model(parser, default="demo", text="(default: demo, the small model that is installed with the package)")
    add_how_to_run(parser)
