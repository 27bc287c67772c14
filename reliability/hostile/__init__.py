"""Files by a stranger's hand: damaged in every way that comes to mind, and read under watch.

TITLE and section() are this part of docs/reliability.md. Four records are told of: "hostile", the long run that found
what was to be mended; "hostile_after", one of later sources and other damage; "hostile_guided", one by coverage alone;
"hostile_again", what failed in the first two, once more.
"""

from __future__ import annotations

import re
from typing import Any

from .. import record
from .harness_faults import what_was_wrong

TITLE = "Hostile files"
_OWN_FOLDER = re.compile(r"/(?:[\w.+-]+/)*tmp\w{8}/")  # of tempfile's naming

_INTRODUCTION = """\
Sound files of a few kilobytes are damaged by a rule for their kind (JSON by values, keys and nesting; pickles by opcodes and by
calls of what must not be called; zips by entries and by the numbers of their directory; safetensors by the header; any file as
bytes, and by links, directories, pipes, sockets, devices and holes of a terabyte in its place) and read by the functions that
users call. A process of its own reads them, with one thread, and may die. What counts as right: the file is read, or refused by a
`raise` of this package, of ValueError, TypeError, OSError or NotImplementedError, with one line of at most 600 characters beside
the path. What counts as a failure: any other end; code run or another process started; a file opened or changed outside of the
folder (an audit hook, and inotify on a folder beside it, which sees other languages too); address space of more than 64 MiB
and 64 times the bytes on the disk; 10 s of a processor, or no answer in 60 s; a changed folder.
"""

_DECISIONS = """\
Decided: a link may lead within its folder, or into `models--*/blobs` of a Hub's cache, wherever that lies; any other is refused,
and so is an index that names anything but a file of its folder. The whole folder may be a link, and a file that the user names
(`--data`) may be one. Of a `.bin`, only pickles of plain tensors are unpickled (by torch, with `weights_only`), each key of a
JSON object may stand there once, and a `tokenizer.json` has the stages of a byte-level BPE. Limits: texts of 256 MB, JSON of 64
levels, gzip of 100 times its size, `n_positions * rotary_dim` of 2^22, 1024 beams or samples by a checkpoint's own file.
"""


def section(found: dict[str, Any]) -> str:
    """The part of the page. found: the record "hostile"."""
    parts = [_INTRODUCTION, _run_text("The first run", found), _failures_text(found)]
    after, again, grown = (record.read(f"hostile_{name}") for name in ("after", "again", "guided"))
    if grown is not None:
        parts += [_run_text("By coverage alone, after mending", grown), _failures_text(grown)]
    if after is not None:
        parts += [_run_text("After mending, with other damage", after), _failures_text(after)]
    if again is not None:
        parts.append(_again_text(again, [run for run in (found, after) if run is not None]))
    return "\n".join([*parts, _DECISIONS])


def _again_text(again: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """again: the record; runs: those whose causes it was to try."""
    tried = again["again"]
    causes = sum(len(each["failures"]) for run in runs for each in (*run["targets"], *run["guided"]))
    anew = sum("seconds" in each for each in tried)
    how = f" ({anew} by growing inputs by coverage for as long as then: theirs was not kept)" if anew else ""
    lines = [f"**Once more**, `{again['command']}`, {again['date'][:10]}, commit {again['commit']}: {len(tried)} of the {causes} "
             f"causes of these two runs, each by its first input{how}. {sum(each['now'] is None for each in tried)} of them are "
             f"gone: read, or refused as they should be.\n"]
    lines += [f"- open: {each['target']}, case {each['case']}: {_cell(each['now'])}" for each in tried if each["now"]]
    return "\n".join(lines)


def _run_text(name: str, found: dict[str, Any]) -> str:
    tallies = [*found["targets"], *found["guided"]]
    inputs, causes = sum(each["cases"] for each in tallies), sum(len(each["failures"]) for each in tallies)
    lines = [f"**{name}**, `{found['command']}`, {found['seconds']:,.0f} s on {found['date'][:10]}, commit {found['commit']}: "
             f"{inputs:,} inputs, {causes} causes of failure.\n"]
    mutated = [each for each in found["targets"] if each["cases"]]
    if mutated:
        lines += ["| target | inputs | read | refused | failures | slowest | most memory |", "|---|---|---|---|---|---|---|"]
    for each in mutated:
        lines.append(f"| {each['target']} | {each['cases']:,} | {each['read']:,} | {each['refused']:,} | "
                     f"{len(each['failures'])} | {each['slowest']:.2f} s | {each['peak_bytes'] / 2**20:.0f} MiB |")
    if found["guided"]:
        guided = any(each["covered"] for each in found["guided"])
        how = (f"Grown by coverage (atheris {found['atheris']}, branches of `codegen_fast`)" if guided else
               f"Grown by atheris {found['atheris']} without coverage (the package was imported before it could be instrumented: "
               f"mended since)")
        lines += ["", f"{how}:\n",
                  "| target | inputs | seconds | branches by the seed | at the end | failures |", "|---|---|---|---|---|---|"]
        for each in found["guided"]:
            lines.append(f"| {each['target']} | {each['cases']:,} | {each['seconds']:.0f} | {each['covered_by_seed']} | "
                         f"{each['covered']} | {len(each['failures'])} |")
    return "\n".join(lines) + "\n"


def _failures_text(found: dict[str, Any]) -> str:
    """What failed, how often, and what of it was the harness's own; nothing where nothing failed."""
    rows = [(each["target"], kind, failure["times"], what_was_wrong(found, part, each["target"], failure["case"]))
            for part in ("targets", "guided") for each in found[part] for kind, failure in each["failures"].items()]
    if not rows:
        return ""
    own = sum(wrong is not None for *_, wrong in rows)
    head = "| failed | what | times |" + (" the harness's own |" if own else "")
    lines = [head, "|---" * (4 if own else 3) + "|"]
    for target, kind, times, wrong in rows:
        lines.append(f"| {target} | {_cell(kind)} | {times} |" + (f" {wrong or ''} |" if own else ""))
    if own:
        lines += ["", f"{own} of the {len(rows)} were the harness's own (`reliability/hostile/harness_faults.py`), and were mended "
                      f"with the package."]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Fit for a table: short, without paths of the run's own folder."""
    return " ".join(_OWN_FOLDER.sub("", text).replace("|", "/").split())[:160]
