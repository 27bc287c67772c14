"""Evaluation's files by a stranger's hand: problems, and runs that somebody else began. As in test_hostile_files.py, every case
once crashed, hung, took memory, left its folder, or was refused without advice.
"""

import gzip
import json
import os

import pytest
from strange_files import LONG, little_memory, new_folder, put, refused

from codegen_fast.evaluation import humaneval, mtpb
from codegen_fast.evaluation.comparison import compare
from codegen_fast.evaluation.jsonl import Journal
from codegen_fast.evaluation.records import is_result, is_sample
from codegen_fast.evaluation.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return new_folder(tmp_path)


@pytest.mark.parametrize("kind, message", [("pipe", "no regular file"), ("folder", "no regular file"),
                                           ("/dev/zero", "no regular file"), ("nowhere", "cannot be read")])
@pytest.mark.parametrize("name, read", [("data.jsonl", humaneval.read_problems), ("data.jsonl.gz", humaneval.read_problems)])
def test_problems_that_are_no_file(folder, name, read, kind, message):
    put(kind, folder / name)
    refused(OSError, message, read, str(folder / name))


def test_a_compressed_file_that_unfolds_without_end(folder):
    path = folder / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (300 << 20)))
    refused(ValueError, "line 1 of .* has more than 16777216 bytes", humaneval.read_problems, str(path))
    path.write_bytes(gzip.compress((b" " * (1 << 10) + b"\n") * (50 << 10)))
    refused(OSError, "unfolds to more than 100 times its size", humaneval.read_problems, str(path))
    path.write_bytes(gzip.compress(b"{}")[:10] + b"\xff" * 20)
    refused(OSError, "cannot be read", humaneval.read_problems, str(path))


@pytest.mark.parametrize("prompt", ["{a:>999999999}", "{a.__class__}", "{a[0]}", "{a!r}", "{0}", "{}", "{a:{a}}", "{"])
def test_a_prompt_is_filled_with_inputs_and_nothing_else(folder, prompt):
    path = folder / "mtpb.jsonl"
    path.write_text(json.dumps({"id": "1", "prompts": [prompt], "inputs": [{"a": "1"}], "outputs": ["1"]}))
    refused(ValueError, "does not fill the prompts", mtpb.read_problems, str(path))


@pytest.mark.parametrize("name", ["a\nb", LONG, "\x1b[2J"])
def test_problems_that_are_there_twice(folder, name):
    for read, problem in ((humaneval.read_problems, {"task_id": name, "prompt": "a", "entry_point": "a", "test": "a"}),
                          (mtpb.read_problems, {"id": name, "prompts": ["a"], "inputs": [], "outputs": []})):
        (folder / "data.jsonl").write_text((json.dumps(problem) + "\n") * 2)
        refused(ValueError, "of an earlier one", read, str(folder / "data.jsonl"))


SAMPLE = {"task_id": "a", "sample": 0, "completion": "x", "tokens": 1, "finish_reason": "eos"}


@pytest.mark.parametrize("changed", [
    {"task_id": ["a"]}, {"task_id": "b"}, {"sample": [0]}, {"sample": -1}, {"sample": True}, {"sample": "0"}, {"completion": None},
    {"tokens": "1"}, {"tokens": 10**30}, {"finish_reason": None}, {"finish_reasons": [["eos"]]}, {"finish_reasons": "eos"},
    {"prompt_tokens": 1, "prompt_nll": 1e308}, {"prompt_tokens": 0, "prompt_nll": 1.0}, {"prompt_tokens": "1"},
])
def test_records_of_a_run_that_somebody_else_began(folder, changed):
    path = folder / "samples.jsonl"
    key = humaneval.record_key([{"task_id": "a"}])
    path.write_text(json.dumps(SAMPLE) + "\n")
    Journal(path, key, lambda record: is_sample(record, humaneval.JUDGED)).close()
    path.write_text(json.dumps({**SAMPLE, **changed}) + "\n")
    refused(ValueError, "line 1 of .* is no record of such a run", Journal, path, key,
            lambda record: is_sample(record, humaneval.JUDGED))


@pytest.mark.parametrize("begin", ["", json.dumps(SAMPLE) + "\n"])
@pytest.mark.parametrize("name, read", [
    ("samples.jsonl", lambda path: Journal(path, humaneval.record_key([{"task_id": "a"}]))),
    ("data.jsonl", lambda path: humaneval.read_problems(str(path))),
])
def test_lines_that_take_memory_and_no_disk(folder, name, read, begin):
    path = folder / name
    path.write_text(begin)
    os.truncate(path, 500 << 20)
    with little_memory(64):
        refused(ValueError, f"line {2 if begin else 1} of .* has more than 16777216 bytes: expected one JSON object", read, path)
    assert path.stat().st_size == 500 << 20


def test_results_of_a_run_that_somebody_else_began():
    assert is_result({"passed": True, "result": "passed"})
    assert not any(map(is_result, ({"passed": 1, "result": "x"}, {"passed": True}, {"passed": {}, "result": []})))


@pytest.mark.parametrize("name", ["lock", "settings.json.tmp", "samples.jsonl", "settings.json"])
def test_a_run_writes_through_no_link(tmp_path, name):
    """A folder from elsewhere may have links where the run writes: the file that they lead to stays as it is."""
    precious = tmp_path / "precious"
    precious.write_text("alive")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(precious)
    try:
        if name == "samples.jsonl":
            Journal(folder / name, lambda record: 0).close()
        else:
            with RunFolder(folder, {"benchmark": "humaneval"}, {}):
                pass
    except (OSError, ValueError) as error:
        assert str(folder) in str(error)
    assert precious.read_text() == "alive"


@pytest.mark.parametrize("name", ["\n\n", LONG])
def test_a_setting_of_an_odd_name(folder, name):
    (folder / "settings.json").write_text(json.dumps({"benchmark": "humaneval", name: name}))
    refused(ValueError, "holds a run with .*: use the same settings", RunFolder, folder, {"benchmark": "humaneval"}, {})


@pytest.mark.parametrize("changed, message", [
    ({"counts": None}, "is not the summary of a run"), ({"counts": {}}, "is not the summary"),
    ({"counts": {"x": {"a": [1, 1]}}}, "is not"),
    ({"counts": {"0.2": {"a": [1, 2]}}}, "is not"), ({"counts": {"0.2": {"a": [10**12, 1]}}}, "is not"),
    ({"counts": {"0.2": {"a": [2, 1]}, "0.6": {"b": [2, 1]}}}, "is not"), ({"pass_at_k": []}, "has no pass_at_k of numbers"),
    ({"pass_at_k": {"x": 1}}, "has no pass_at_k of numbers"),
])
def test_summaries_that_are_none(folder, changed, message):
    (folder / "settings.json").write_text('{"benchmark": "humaneval"}')
    sound = {"counts": {"0.2": {"a": [2, 1]}}, "pass_at_k": {"1": {}}}
    (folder / "summary.json").write_text(json.dumps(sound))
    assert compare(folder, folder)
    (folder / "summary.json").write_text(json.dumps({**sound, **changed}))
    refused(ValueError, message, compare, folder, folder)
