"""codegen-fast eval perplexity: bits per byte, windows, and what a quantised model's predictions differ by."""

import re

import pytest
import torch

from codegen_fast import AutoModelForCausalLM, AutoTokenizer
from codegen_fast.cli import main
from codegen_fast.demo import demo_model_path
from codegen_fast.evaluation.perplexity import divergence, of_files, read_text
from codegen_fast.evaluation.run_folder import __file__ as SOURCE


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)


@pytest.fixture(scope="module")
def int8():
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32, quantization="int8")


@pytest.fixture(scope="module")
def text():
    return read_text(SOURCE)


def test_files_together_are_what_perplexity_says_of_all_texts(model, tokenizer, text):
    texts = [text[:900], text[900:3000]]
    each, total = of_files(model, tokenizer, texts, 200, 50)
    expected = model.perplexity(texts, tokenizer=tokenizer, window=200, stride=50)
    assert [one.num_tokens for one in each] == [model.perplexity(one, tokenizer=tokenizer, window=200).num_tokens
                                                for one in texts]
    assert total.num_tokens == expected.num_tokens
    assert total.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-9)
    assert total.perplexity == pytest.approx(expected.perplexity, rel=1e-9)


@pytest.mark.parametrize("window, stride", [(None, None), (300, 100), (300, 300), (64, 1)])
def test_kl_is_that_of_whole_distributions(model, int8, tokenizer, text, window, stride):
    ids = tokenizer(text).input_ids[:700 if stride != 1 else 90]
    found = divergence(model, int8, [ids], window, stride)
    kls, same, seen = [], [], 0
    size, step = window or 1024, stride or (window or 1024) // 2
    for begin in range(0, len(ids), step):  # every window in one pass
        own = torch.tensor([ids[begin:begin + size]])
        first = max(seen, begin + 1)
        p, q = (each(own).logits[0, first - 1 - begin:-1].double().log_softmax(-1) for each in (model, int8))
        kls.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).double())
        seen = begin + own.shape[1]
        if seen == len(ids):
            break
    kls, same = torch.cat(kls), torch.cat(same)
    assert found.num_tokens == len(kls)
    assert found.kl == pytest.approx(float(kls.mean()), rel=1e-4)
    assert found.same_best == pytest.approx(float(same.mean()))
    assert 0 < found.kl < 5e-3  # DESIGN's bound for int8 on the demo model
    assert divergence(model, model, [ids], window, stride).kl == 0


def test_the_command(capsys, tmp_path, text):
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text(text[:1500])
    second.write_text(text[1500:3500])
    assert main(["eval", "perplexity", "--window", "256", "--stride", "128", "--against", "int8", "--against", "int4",
                 str(first), str(second)]) == 0
    out = capsys.readouterr().out
    number = r" +([\d.]+)"
    one, two, both = (re.search(rf"^{re.escape(str(name))}{number * 3}$", out, re.MULTILINE)
                      for name in (first, second, "all"))
    assert min(float(one[1]), float(two[1])) <= float(both[1]) <= max(float(one[1]), float(two[1]))
    assert int(both[3]) == int(one[3]) + int(two[3])
    kls = [float(re.search(rf"^{name} .* ([\d.e-]+) +[\d.]+%$", out, re.MULTILINE)[1]) for name in ("int8", "int4")]
    assert 0 < kls[0] < kls[1] < 0.5


@pytest.mark.parametrize("argv, words", [
    ([], "the following arguments are required: FILE"),
    (["missing.py"], "missing.py cannot be read: No such file"),
    (["empty.py"], "empty.py is empty: there is nothing to score"),
    (["latin.py"], "latin.py is not UTF-8 text: byte 1 is 0xe9"),
    (["good.py", "--window", "5000"], "--window 5000 is more than the model's context of 1024 tokens"),
    (["good.py", "--window", "64", "--stride", "65"], "--stride 65 is more than the window of 64 tokens"),
    (["good.py", "--against", "int8", "--quantization", "int8"], "leave out --quantization int8"),
    (["one.py"], "perplexity needs two at least"),
])
def test_wrong_input(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    for name, data in (("empty.py", b""), ("latin.py", b"d\xe9f"), ("good.py", b"import os\n"), ("one.py", b"a")):
        (tmp_path / name).write_bytes(data)
    assert main(["eval", "perplexity", *argv]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
