"""codegen-fast: what it prints, its options, its errors, and how it ends."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import pytest
import torch

import codegen_fast
from checkpoints import make_checkpoint
from codegen_fast import AutoModelForCausalLM, AutoTokenizer, truncate
from codegen_fast.cli import arguments, eval_arguments, generate, main
from codegen_fast.quantization import QUANTIZATIONS
from tokenizers_small import END_OF_TEXT, build_backend, write_tokenizer

EOS = build_backend().token_to_id(END_OF_TEXT)
PROMPT = "def fibonacci(n):\n    "
# The last line.
SPEED = (r"(\d+) tokens?(?: in \d+ samples)?: first after [\d.]+ m?s \(prompt of (\d+)\)"
         r"(?:, then (\d+) in [\d.]+ m?s: [\d.]+ tokens/s, [\d.]+ GB/s of weights and cache, \d+% of this machine's "
         r"[\d.]+ GB/s(?: \(which is no limit here: .* of weights fit the CPU's cache of \d+ MiB\))?)?"
         r"(?:; seed (\d+))?")
DRAFTS = (r"(\d+) tokens: first after [\d.]+ m?s \(prompt of \d+\), then \d+ in [\d.]+ m?s: [\d.]+ tokens/s, "
          r"[\d.]+ tokens a call, (?:\d+% of \d+ drafted tokens? accepted|nothing was drafted)")


def make_folder(folder: Path, **config) -> Path:
    """A checkpoint with a tokenizer, for a context of 256 tokens unless `config` differs."""
    # This seed's model does not repeat one token for ever.
    make_checkpoint(folder, seed=7, **{"vocab_size": 460, "n_positions": 256, "bos_token_id": EOS, "eos_token_id": EOS,
                                       **config})
    return write_tokenizer(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def quick(monkeypatch):
    """Measuring the bandwidth takes longer than the small model's whole text; test_machine.py tests it."""
    monkeypatch.setattr("codegen_fast.cli.generate.read_bandwidth", lambda seconds, threads: 20e9)
    monkeypatch.setattr("codegen_fast.cli.info.read_bandwidth", lambda seconds, threads: 20e9)


def run(capsys, *argv):
    """(exit code, standard output, standard error)"""
    code = main([str(word) for word in argv])
    return (code, *capsys.readouterr())


def expected_texts(folder, prompt, **knobs):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids if prompt else None
    rows = model.generate(ids, **knobs)
    start = 1 if ids is None else ids.shape[1]
    return [prompt + text for text in tokenizer.batch_decode(rows[:, start:], skip_special_tokens=True)]


def test_generate_gives_the_text_that_the_library_gives(capsys, quick, folder):
    code, out, err = run(capsys, "generate", "--model", folder, "--max-new-tokens", 40, PROMPT)
    (text,) = expected_texts(folder, PROMPT, max_new_tokens=40)
    assert code == 0
    assert out == text + "\n" * (not text.endswith("\n"))
    tokens, prompt, decoded, seed = re.fullmatch(SPEED + "\n", err).groups()
    prompt_tokens = len(AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids)
    assert (int(tokens), int(prompt), int(decoded), seed) == (40, prompt_tokens, 39, None)


def test_text_is_written_as_it_comes(monkeypatch, quick, folder):
    class Terminal(io.StringIO):
        def flush(self):
            if self.getvalue():  # tqdm flushes too
                shown.append(self.getvalue())

    shown = []
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["generate", "--model", str(folder), "--max-new-tokens", "30", PROMPT]) == 0
    assert shown[0] == PROMPT
    assert len(set(shown)) > 15  # tokens that end inside a character show nothing yet
    assert all(later.startswith(earlier) for earlier, later in zip(shown, shown[1:]))


def test_it_stops_at_an_eos_token_and_does_not_print_it(capsys, quick, folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    new = AutoModelForCausalLM.from_pretrained(folder).generate(ids, max_new_tokens=12)[0, ids.shape[1]:].tolist()
    last = next(i for i in range(3, 12) if new[i] not in new[:i])
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS, new[last]]}))
    code, out, err = run(capsys, "generate", "--model", tmp_path / "model", PROMPT)
    assert code == 0 and out.rstrip("\n") == (PROMPT + tokenizer.decode(new[:last])).rstrip("\n")
    assert err.startswith(f"{last + 1} tokens: ")


def test_samples_are_those_of_the_library(capsys, quick, folder):
    code, out, err = run(capsys, "generate", "--model", folder, "--n", 3, "--seed", 7, "--temperature", 0.9,
                         "--top-p", 0.8, "--top-k", 20, "--max-new-tokens", 12, PROMPT)
    texts = expected_texts(folder, PROMPT, do_sample=True, num_return_sequences=3, seed=7, temperature=0.9, top_p=0.8,
                           top_k=20, max_new_tokens=12)
    assert code == 0
    parts = re.split(r"^=== sample (\d) of 3 ===\n", out, flags=re.MULTILINE)
    assert parts[0] == "" and sorted(parts[1::2]) == ["1", "2", "3"]
    written = {int(number): text for number, text in zip(parts[1::2], parts[2::2])}
    assert [written[i + 1].rstrip("\n") for i in range(3)] == [text.rstrip("\n") for text in texts]
    assert re.fullmatch(SPEED + "\n", err).group(4) == "7" and "tokens in 3 samples" in err


def test_without_a_seed_samples_differ_and_the_seed_is_told(capsys, quick, folder):
    call = ("generate", "--model", folder, "--temperature", 1.5, "--top-k", 0, "--max-new-tokens", 20, PROMPT)
    (_, first, err), (_, second, _) = run(capsys, *call), run(capsys, *call)
    assert first != second
    assert run(capsys, *call, "--seed", re.search(r"seed (\d+)", err).group(1))[1] == first


@pytest.mark.parametrize("options, stop", [
    (["--stop", "line"], "line"),
    (["--stop-regex", "[aeiou]", "--stop-regex", "q|z"], ["[aeiou]", "q|z"]),
])
def test_a_stop_cuts_what_is_printed(capsys, quick, folder, options, stop):
    for samples, begin in ((1, ""), (2, "=== sample 1 of 2 ===\n")):
        knobs = dict(max_new_tokens=60, do_sample=True, seed=3, temperature=0.9, num_return_sequences=samples)
        code, out, err = run(capsys, "generate", "--model", folder, "--seed", 3, "--temperature", 0.9, "--n", samples,
                             "--max-new-tokens", 60, *options, PROMPT)
        (whole, *_) = expected_texts(folder, PROMPT, **knobs)
        kept = PROMPT + truncate(whole.removeprefix(PROMPT), stop, PROMPT)
        assert len(kept) < len(whole)
        assert code == 0 and begin + kept + "\n" * (not kept.endswith("\n")) in out
        assert samples > 1 or out.rstrip("\n") == kept.rstrip("\n")
        assert int(re.fullmatch(SPEED + "\n", err).group(1)) < 60 * samples


def test_penalty_and_min_p_are_those_of_the_library(capsys, quick, folder):
    _, out, _ = run(capsys, "generate", "--model", folder, "--repetition-penalty", 1.5, "--max-new-tokens", 20, PROMPT)
    (text,) = expected_texts(folder, PROMPT, repetition_penalty=1.5, max_new_tokens=20)
    assert out.rstrip("\n") == text.rstrip("\n") != expected_texts(folder, PROMPT, max_new_tokens=20)[0].rstrip("\n")
    _, out, _ = run(capsys, "generate", "--model", folder, "--min-p", 0.2, "--temperature", 1.5, "--seed", 4,
                    "--max-new-tokens", 20, PROMPT)
    (text,) = expected_texts(folder, PROMPT, do_sample=True, min_p=0.2, temperature=1.5, seed=4, max_new_tokens=20)
    assert out.rstrip("\n") == text.rstrip("\n")


def test_beams_are_those_of_the_library(capsys, quick, folder):
    texts = [text.rstrip("\n") for text in expected_texts(folder, PROMPT, num_beams=3, num_return_sequences=2,
                                                          max_new_tokens=12)]
    call = ("generate", "--model", folder, "--beams", 3, "--max-new-tokens", 12, PROMPT)
    code, out, err = run(capsys, *call)
    assert code == 0 and out.rstrip("\n") == texts[0] and out.endswith("\n")
    assert re.fullmatch(r"\d+ tokens in the best of 3 beams: [\d.]+ m?s \(prompt of \d+\), [\d.]+ tokens/s\n", err)
    code, out, err = run(capsys, *call, "--n", 2)
    results = re.split(r"^=== result \d of 2 ===\n", out, flags=re.MULTILINE)
    assert code == 0 and [result.rstrip("\n") for result in results] == ["", *texts]
    assert " tokens in the 2 best of 3 beams: " in err


def test_a_checkpoints_own_beams_and_drafts_do_not_count(capsys, quick, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": EOS, "num_beams": 4, "prompt_lookup_num_tokens": 3}))
    call = ("--max-new-tokens", 12, PROMPT)
    code, out, err = run(capsys, "generate", "--model", tmp_path / "model", *call)
    assert (code, out) == run(capsys, "generate", "--model", folder, *call)[:2]
    assert re.fullmatch(SPEED + "\n", err)


def test_prompt_lookup_changes_no_token_and_is_told(capsys, quick, folder):
    prompt = "x = 1\n" * 12
    call = ("generate", "--model", folder, "--max-new-tokens", 40, prompt)
    plain = run(capsys, *call)[1]
    for option in ("--prompt-lookup", "--prompt-lookup=4"):
        code, out, err = run(capsys, *call, option)
        assert (code, out) == (0, plain)
        assert re.fullmatch(DRAFTS + "\n", err).group(1) == "40"
    code, _, err = run(capsys, *call, "--prompt-lookup", "--max-new-tokens", 1)
    assert code == 0 and re.fullmatch(SPEED + "\n", err)


@pytest.mark.parametrize("options, expected", [
    ([], {"do_sample": False, "max_new_tokens": 128}),
    (["--temperature", "0", "--top-k", "5", "--seed", "3"], {"do_sample": False}),
    (["--temperature", "0.8"], {"do_sample": True, "temperature": 0.8}),
    (["--n", "2"], {"do_sample": True, "temperature": 0.2, "num_return_sequences": 2}),
    (["--seed", "5"], {"do_sample": True, "temperature": 0.2, "seed": 5}),
    (["--top-p", "0.5"], {"do_sample": True, "temperature": 0.2, "top_p": 0.5}),
    (["--top-k", "0"], {"do_sample": True, "temperature": 0.2, "top_k": 0}),
    (["--min-p", "0.1"], {"do_sample": True, "temperature": 0.2, "min_p": 0.1}),
    (["--max-new-tokens", "500"], {"max_new_tokens": 500}),
    (["--stop", "function"], {"do_sample": False, "stop": "function"}),
    (["--stop-regex", "a", "--stop-regex", "^b"], {"stop": ["a", "^b"]}),
    (["--repetition-penalty", "1.2"], {"do_sample": False, "repetition_penalty": 1.2}),
    (["--beams", "3", "--n", "3"], {"do_sample": False, "num_beams": 3, "num_return_sequences": 3}),
    (["--beams", "3", "--seed", "5"], {"do_sample": True, "temperature": 0.2, "num_beams": 3, "seed": 5}),
    (["--prompt-lookup"], {"do_sample": False, "prompt_lookup_num_tokens": 10, "num_beams": 1}),
    (["--prompt-lookup", "4"], {"prompt_lookup_num_tokens": 4}),
])
def test_knobs_of_the_options(options, expected):
    parsed = arguments.build_parser("0").parse_args(["generate", "x", "--model", "m", *options])
    knobs = generate.choose_knobs(parsed, room=200)
    assert {**knobs, **expected} == knobs
    assert generate.choose_knobs(parsed, room=10)["max_new_tokens"] == (500 if "500" in options else 10)


@pytest.mark.parametrize("options, expected", [
    ([], {"do_sample": True, "temperature": 0.6, "seed": 0}),
    (["--temperature", "0"], {"do_sample": False}),
    (["--beams", "2"], {"do_sample": False}),
    (["--stop", "function"], {"do_sample": True, "temperature": 0.6, "seed": 0}),
    (["--seed", "5"], {"do_sample": True, "temperature": 0.2, "seed": 5}),
])
def test_the_demo_model_samples_unless_told_otherwise(options, expected):
    parsed = arguments.build_parser("0").parse_args(["generate", "x", *options])
    knobs = generate.choose_knobs(parsed, room=200)
    assert {**knobs, **expected} == knobs


def test_dtype_quantization_and_threads_reach_the_model(capsys, quick, folder, monkeypatch):
    seen = []
    load = AutoModelForCausalLM.from_pretrained.__func__

    def record(cls, *args, **kwargs):
        seen.append(load(cls, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", classmethod(record))
    code, _, _ = run(capsys, "generate", "--model", folder, "--dtype", "bfloat16", "--quantization", "int8",
                     "--threads", 1, "--device", "cpu", "--max-new-tokens", 2, "x")
    assert code == 0 and torch.get_num_threads() == 1
    assert (seen[0].dtype, seen[0].quantization, seen[0].device.type) == (torch.bfloat16, "int8", "cpu")


def test_every_quantisation_can_be_asked_for(capsys, quick, folder):
    """The parser names them itself, because it loads no torch."""
    for name in QUANTIZATIONS:
        code, _, _ = run(capsys, "generate", "--model", folder, "--quantization", name, "--device", "cpu",
                         "--max-new-tokens", 1, "x")
        assert code == 0


def test_prompt_from_a_file_or_standard_input_is_taken_as_it_stands(capsys, quick, folder, tmp_path, monkeypatch):
    text = "# \\n is no newline, é漢🙂\r\n\tx = 1\n"
    (tmp_path / "prompt.py").write_bytes(text.encode())
    call = ("generate", "--model", folder, "--max-new-tokens", 1)
    texts = [run(capsys, *call, text), run(capsys, *call, "--file", tmp_path / "prompt.py")]
    for words in (["-"], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="latin-1"))
        texts.append(run(capsys, *call, *words))
    assert {(code, out) for code, out, _ in texts} == {(0, texts[0][1])}
    assert texts[0][1].startswith(text)


def test_an_empty_prompt_begins_at_the_bos_token(capsys, quick, folder):
    code, out, err = run(capsys, "generate", "--model", folder, "--max-new-tokens", 8, "")
    assert code == 0 and "(prompt of 1)" in err
    assert out.rstrip("\n") == expected_texts(folder, "", max_new_tokens=8)[0].rstrip("\n")


@pytest.mark.parametrize("words, message", [
    ([], "no command is given: expected generate, info, bench or eval"),
    (["frobnicate"], "invalid choice: 'frobnicate'"),
    (["generate"], "no prompt is given: expected a text, --file PATH, or - for standard input"),
    (["generate", "x", "--file", "y"], "both a prompt and --file are given"),
    (["generate", "x", "--temp", "1"], "unrecognized arguments: --temp 1"),
    (["generate", "x", "--temperature", "hot"], "'hot' is not a number of 0 or more"),
    (["generate", "x", "--temperature", "nan"], "nan is not a number of 0 or more"),
    (["generate", "x", "--temperature", "-1"], "-1 is not a number of 0 or more"),
    (["generate", "x", "--top-p", "1.5"], "argument --top-p: 1.5 is not a number from 0 to 1"),
    (["generate", "x", "--top-k", "-2"], "-2 is not an integer of 0 or more"),
    (["generate", "x", "--max-new-tokens", "0"], "0 is not an integer of 1 or more"),
    (["generate", "x", "--n", "0"], "0 is not an integer from 1"),
    (["generate", "x", "--n", "2", "--temperature", "0"], "--n 2 needs a --temperature above 0"),
    (["generate", "x", "--n", "4", "--beams", "3"], "--n 4 is more than --beams 3"),
    (["generate", "x", "--beams", "0"], "argument --beams: 0 is not an integer of 1 or more"),
    (["generate", "x", "--beams", "2", "--stop", "line"], "--stop does not go with --beams 2"),
    (["generate", "x", "--beams", "2", "--stop-regex", "a"], "--stop-regex does not go with --beams 2"),
    (["generate", "x", "--beams", "2", "--prompt-lookup"], "--prompt-lookup does not go with --beams 2"),
    (["generate", "--prompt-lookup", "x"], "argument --prompt-lookup: 'x' is not an integer of 1 or more"),
    (["generate", "x", "--stop", "word"], "argument --stop: invalid choice: 'word'"),
    (["generate", "x", "--stop", "line", "--stop-regex", "a"], "--stop-regex: not allowed with argument --stop"),
    (["generate", "x", "--stop-regex", "("], "'(' is no regular expression: missing )"),
    (["generate", "x", "--stop-regex", "a*"], "'a*' matches an empty text"),
    (["generate", "x", "--min-p", "2"], "argument --min-p: 2 is not a number from 0 to 1"),
    (["generate", "x", "--repetition-penalty", "0"], "argument --repetition-penalty: 0 is not a number above 0"),
    (["generate", "x", "--seed", "-1"], "-1 is not an integer from 0 to 18446744073709551615"),
    (["generate", "x", "--threads", "0"], "0 is not an integer from 1 to 256"),
    (["generate", "x", "--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
    (["generate", "x", "--quantization", "int3"], "argument --quantization: invalid choice: 'int3'"),
    (["generate", "x", "--device", "tpu"], "device='tpu'"),
    (["generate", "x", "--max-new-tokens", "256"], "past the model's context of 256 tokens: ask for at most 255"),
    (["generate", "x " * 400], "does not fit the model's context of 256 tokens"),
    (["generate", "a\udcff"], "the prompt is not UTF-8 text: byte 1 is 0xff"),
    (["generate", "--file", "no/such/file"], "--file no/such/file cannot be read: No such file or directory"),
    (["generate", "--file", "."], "--file . cannot be read: Is a directory"),
    (["generate", "x", "--model", "no/such/folder/"], "there is no folder 'no/such/folder/'"),
    (["generate", "x", "--model", "nobody/nothing"], "'nobody/nothing' is not a folder, and its files cannot be had"),
    (["info", "--model", "nobody/nothing"], "'nobody/nothing' is not a folder, and its files cannot be had"),
    (["info", "--model", "."], "has no config.json"),
])
def test_an_error_is_one_line_and_exit_code_2(capsys, folder, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if words[:1] == ["generate"] and "--model" not in words:
        words = [*words, "--model", str(folder)]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("codegen-fast: error: ") and err.endswith("\n") and err.count("\n") == 1
    assert message in err


def test_errors_of_files(capsys, folder, tmp_path, monkeypatch):
    def error(*words):
        code, out, err = run(capsys, *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    (tmp_path / "latin1.py").write_bytes("é".encode("latin-1") + b"!")
    assert "latin1.py is not UTF-8 text: byte 0 is 0xe9" in error("generate", "--file", tmp_path / "latin1.py")
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed" in error("generate", "-")

    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for command in (["generate", "x"], ["info"]):
        assert "model_type is 'bert', so this is not a CodeGen model" in error(*command, "--model", tmp_path / "bert")
    (tmp_path / "bare").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "bare")
    assert "tokenizer" in error("generate", "x", "--model", tmp_path / "bare")
    write_tokenizer(tmp_path / "bare")
    assert "model.safetensors" in error("generate", "x", "--model", tmp_path / "bare")


@pytest.mark.parametrize("error, message", [
    (MemoryError(), "out of memory"),
    (ValueError("two\n  lines"), "two lines"),
    (KeyError("bug"), "KeyError: 'bug'"),
    (RuntimeError(), "RuntimeError"),
])
def test_what_no_one_foresaw_is_one_line_too(capsys, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(generate, "run", fail)
    assert run(capsys, "generate", "x") == (2, "", f"codegen-fast: error: {message}\n")


def test_warnings_are_a_line_on_standard_error(capsys, quick, folder, tmp_path):
    def warn(_):
        warnings.warn("mind\nthe gap", UserWarning)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "run", warn)
        assert run(capsys, "generate", "x") == (0, "", "codegen-fast: warning: mind the gap\n")
    # A checkpoint's own length and sampling knobs give none: the command line decides.
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(
        {"eos_token_id": EOS, "max_length": 50, "do_sample": True, "temperature": 0.6, "top_k": 10}))
    code, _, err = run(capsys, "generate", "--model", tmp_path / "model", "--max-new-tokens", 3, "x")
    assert code == 0 and re.fullmatch(SPEED + "\n", err)


def test_info_of_the_machine(capsys, quick):
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [
        "version", "cpu", "instructions", "threads", "memory", "bandwidth", "gpu"]
    assert f"codegen-fast {codegen_fast.__version__}" in out
    assert re.search(r"^bandwidth +[\d.]+ GB/s read by 2 threads \(measured\)$", out, re.MULTILINE)


def test_info_of_a_model_reads_its_config_alone(capsys, quick, folder, tmp_path):
    shutil.copy(folder / "config.json", tmp_path)
    code, out, _ = run(capsys, "info", "--model", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert code == 0 and str(tmp_path) in out
    assert f"parameters   {model.num_parameters() / 1e3:.3g} k" in out
    assert re.search(r"^context +256 tokens, 1.02 kB of cache a token in float32$", out, re.MULTILINE)
    rows = re.findall(r"^(float32|float16|bfloat16|int8|int4) +([\d.]+) kB +([\d.]+) kB +([\d.]+)", out, re.MULTILINE)
    assert [row[0] for row in rows] == ["float32", "float16", "bfloat16", "int8", "int4"]
    read = model.memory_footprint() - model.config.vocab_size * model.config.n_embd * 4
    weights, full, speed = map(float, rows[0][1:])
    assert weights == pytest.approx(model.memory_footprint() / 1e3, rel=1e-2)
    assert full == pytest.approx(weights + 256 * 1.024, rel=1e-2)
    assert speed == pytest.approx(20e9 / read, rel=1e-2)
    assert "float32" in out.split("(the checkpoint's type)")[0].splitlines()[-1]


def test_info_of_a_model_that_does_not_fit(capsys, quick, monkeypatch, folder, tmp_path):
    sizes = {"n_embd": 6144, "n_layer": 34, "n_head": 24, "vocab_size": 51200, "n_positions": 2048, "n_ctx": 2048,
             "torch_dtype": "float16", "dtype": None}
    config = {**json.loads((folder / "config.json").read_text()), **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("codegen_fast.machine.available_bytes", lambda: 20 * 10**9)
    code, out, _ = run(capsys, "info", "--model", tmp_path)
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("float", "bfloat", "int"))}
    assert code == 0 and "parameters   16" in out
    too_large = [kind for kind, line in rows.items() if "does not fit the memory" in line]
    assert too_large == ["float32", "float16", "bfloat16"]
    assert "(the checkpoint's type)" in rows["float16"] and " 0.6" in rows["float16"]  # 20 GB/s over 32 GB


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_info_of_a_quantised_checkpoint(capsys, quick, folder, tmp_path, quantization):
    AutoModelForCausalLM.from_pretrained(folder, quantization=quantization).save_pretrained(tmp_path)
    _, out, _ = run(capsys, "info", "--model", tmp_path)
    rows = [line for line in out.splitlines() if line.startswith(("float", "bfloat", "int"))]
    assert len(rows) == 1 and rows[0].startswith(quantization) and rows[0].endswith("(the checkpoint's type)")


@pytest.mark.parametrize("options", [["--quantization", "int8"], ["--dtype", "bfloat16", "--threads", 1]])
def test_bench_has_every_figure_and_its_limit(capsys, monkeypatch, folder, options):
    monkeypatch.setattr("codegen_fast.cli.bench.read_bandwidth", lambda seconds, threads: threads * 1e9)
    threads = torch.get_num_threads()
    try:
        code, out, err = run(capsys, "bench", "--model", folder, *options)
    finally:
        torch.set_num_threads(threads)
    assert code == 0 and "error" not in err
    for line in (r"model        \S+", rf"type         {options[1]}, .* of weights a step",
                 r"bandwidth    \d.0 GB/s read by \d threads? \(measured\)", r"load         [\d.]+ m?s, then .*",
                 r"first token  [\d.]+ m?s, behind a prompt of 32",
                 r"decode, batch 1, context 32 +[\d.]+ +[\d.]+ +\d+%",
                 r"decode, batch 8, context 32 +[\d.]+ +[\d.]+ +\d+%", r"prefill of 128 tokens +[\d.]+",
                 r"The weights fit the CPU's cache of .*"):  # the context is 256
        assert re.search(f"^{line}$", out, re.MULTILINE), (line, out)


@pytest.mark.parametrize("words, message", [
    (["--model", "no-such-folder"], "no-such-folder"),
    (["--quantization", "int3"], "argument --quantization: invalid choice: 'int3'"),
    (["--threads", "0"], "0 is not an integer from 1 to 256"),
    (["a prompt"], "unrecognized arguments: a prompt"),
])
def test_bench_refuses(capsys, words, message):
    code, out, err = run(capsys, "bench", *words)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("codegen-fast: error: ") and message in err


def test_bench_needs_room_in_the_context(capsys, tmp_path):
    code, _, err = run(capsys, "bench", "--model", make_folder(tmp_path, n_positions=32))
    assert code == 2 and "has a context of 32 tokens; bench needs 36" in err


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["info", "--help"], ["bench", "--help"], ["eval", "--help"],
                                   *([["eval", name, "--help"] for name in ("humaneval", "mtpb", "perplexity",
                                                                            "compare")])])
def test_help_has_examples(capsys, words):
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "") and "examples:\n  codegen-fast " in out


def test_every_example_of_the_help_is_a_command_line():
    parser = arguments.build_parser("0")
    examples = [line for text in (arguments._MAIN_EXAMPLES, arguments._GENERATE_EXAMPLES, arguments._INFO_EXAMPLES,
                                   arguments._BENCH_EXAMPLES, *eval_arguments.ALL_EXAMPLES)
                for line in text.splitlines() if line.startswith("  ")]
    assert len(examples) > 20
    for example in examples:
        command = example.split("|")[-1]
        assert parser.parse_args(shlex.split(command)[1:]).command in ("generate", "info", "bench", "eval")


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"codegen-fast {codegen_fast.__version__}\n", "")


def test_help_and_usage_errors_import_no_torch():
    folder = str(Path(codegen_fast.__file__).parent)
    script = (f"import sys, types; package = types.ModuleType('codegen_fast'); package.__version__ = '1'\n"
              f"package.__path__ = [{folder!r}]; sys.modules['codegen_fast'] = package\n"
              f"from codegen_fast.cli import main\n"
              f"assert main(['generate', '--help']) == 0 and main(['--n']) == 2 and 'torch' not in sys.modules\n")
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def _with_output_closed(monkeypatch, words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        code = main(words)
        out.flush()  # the interpreter does at its end, and must not fail
    return code


@pytest.mark.parametrize("words", [["generate", "x"], ["info"], ["--help"]])
def test_a_closed_pipe_ends_it_quietly(monkeypatch, capsys, quick, folder, words):
    words = [*words, "--model", str(folder)] if words != ["--help"] else words
    assert _with_output_closed(monkeypatch, words) == 141
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_an_error(monkeypatch, capsys, folder):
    with open("/dev/full", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["generate", "x", "--model", str(folder)]) == 2
        out.flush()
    assert capsys.readouterr().err == ("codegen-fast: error: standard output cannot be written: No space left on "
                                       "device\n")


def test_without_standard_output(monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", "x", "--model", str(folder)]) == 2
    assert "standard output is closed" in capsys.readouterr().err


def test_the_console_script_runs_the_demo_model(without_gpus):
    script = Path(sysconfig.get_path("scripts")) / "codegen-fast"
    done = subprocess.run([script, "generate", "def fibonacci(n):"], capture_output=True, text=True, encoding="utf-8",
                          env=without_gpus)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def fibonacci(n):")
    assert re.fullmatch(SPEED + "\n", done.stderr)


def test_ctrl_c_ends_a_generation_with_130(tmp_path, without_gpus):
    make_folder(tmp_path, n_positions=200_000, eos_token_id=None)
    process = subprocess.Popen(
        [sys.executable, "-m", "codegen_fast", "generate", "--model", tmp_path, "--max-new-tokens", "190000", "x = 1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=without_gpus,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        assert process.stdout.read(12).startswith(b"x = 1")  # the prompt and some text: it is under way
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, err) == (130, b"codegen-fast: interrupted\n")
    assert out.endswith(b"\n")
