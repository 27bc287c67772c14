"""token_healing: the tokens of transformers, which another process asks for."""
from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tokenizers_small import END_OF_TEXT, build_backend, write_tokenizer

import codegen_fast
from codegen_fast.demo import demo_model_path
from codegen_fast.generation.healing import _vocabulary, heal
from codegen_fast.tokenizer import CodeGenTokenizer

PAD = "Ā"  # a byte that no text holds, and not the eos token: only then can transformers tell padding from text
STEPS = 6

# Prompts of one call. Rows of a batch are padded on the left.
CASES = {
    "in the middle of a name": ["def f(s"],
    "of a line": ["import os\nimport sys\n\n\nclass Coun"],
    "a bracket": ["print("],
    "a special token inside": ["a<|endoftext|>def f(s"],
    "a blank at the end": ["def f(x): "],
    "a new line at the end": ["def f(s\n"],
    "blanks at the start": ["    return n"],
    "a word after a blank": ["x = prin"],
    "one token": ["a"],
    "bytes of a character": ["x = \"é"],
    "a sign of the vocabulary's alphabet": ["x = Ġ"],
    "digits": ["x = 1"],
    "batch": ["def f(s", "if __na", "for word in co", "return"],
    "batch with words after blanks": ["class Counter: def __in", "import sy", "x = len"],
}

EXPECTED = """
import json, sys, warnings
sys.path.insert(0, sys.argv[1])
import torch, transformers
warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
folder, make, cases, pad, steps = json.loads(sys.stdin.read())
if make:
    from checkpoints import make_checkpoint
    make_checkpoint(__import__("pathlib").Path(folder), vocab_size=512, n_positions=128, seed=8, eos_token_id=511,
                    bos_token_id=511)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token=pad)
model = transformers.AutoModelForCausalLM.from_pretrained(folder)
results = {}
for name, texts in cases.items():
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    result = dict(ids=inputs["input_ids"].tolist(), mask=inputs["attention_mask"].tolist())
    for healing in (False, True):
        ids = model.generate(**inputs, max_new_tokens=steps, do_sample=False, token_healing=healing,
                             tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id, eos_token_id=None)
        result["healed" if healing else "plain"] = ids.tolist()
    results[name] = result
print(json.dumps(results))
"""


def ask_transformers(folder, make=False):
    question = json.dumps([str(folder), make, CASES, PAD, STEPS])
    answer = subprocess.run([sys.executable, "-c", EXPECTED, str(Path(__file__).parent)], input=question, text=True,
                            capture_output=True, timeout=300)  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=["demo", "small"])
def model_and_expected(request, tmp_path_factory):
    """(model, tokenizer, what transformers gives): of the demo model, and of a random one with a small tokenizer."""
    folder = demo_model_path()
    if request.param == "small":
        folder = write_tokenizer(tmp_path_factory.mktemp("small") / "model")
    expected = ask_transformers(folder, make=request.param == "small")
    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(folder, pad_token=PAD)
    return codegen_fast.AutoModelForCausalLM.from_pretrained(folder), tokenizer, expected


@pytest.fixture(scope="module")
def tokenizer():
    return CodeGenTokenizer(build_backend(), eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, unk_token=END_OF_TEXT)


@pytest.mark.parametrize("name", CASES)
def test_the_tokens_of_transformers(model_and_expected, name):
    model, tokenizer, results = model_and_expected
    expected = results[name]
    knobs = dict(attention_mask=torch.tensor(expected["mask"]), max_new_tokens=STEPS, do_sample=False,
                 tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id, eos_token_id=None)  # fmt: skip
    assert model.generate(torch.tensor(expected["ids"]), token_healing=False, **knobs).tolist() == expected["plain"]
    assert model.generate(torch.tensor(expected["ids"]), token_healing=True, **knobs).tolist() == expected["healed"]


def test_healing_matters(model_and_expected):
    _, _, results = model_and_expected
    assert sum(result["plain"] != result["healed"] for result in results.values()) >= 4


def test_candidates(tokenizer):
    """All tokens that begin with the last token's text get the bias, and the last token a little more."""
    asked = []

    def next_token(ids, biases):
        asked.append((ids, biases))
        return max(biases)

    ids = tokenizer("(se")["input_ids"]
    [row] = heal([ids], tokenizer, next_token)
    prefix = tokenizer.decode(ids[-1])
    begin = {index for token, index in tokenizer.get_vocab().items() if token.startswith(prefix)}
    assert asked == [(ids[:-1], {index: 11.0 if index == ids[-1] else 10.0 for index in begin})]
    assert row == [*ids[:-1], max(begin)]


def test_rows_do_not_depend_on_company(tokenizer):
    texts = ["(se", "a", "def f(", "x = 1", "  return n  ", "ret"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]

    def next_token(ids, biases):
        return max(biases)

    rows = heal(prompts, tokenizer, next_token)
    assert rows == [heal([prompt], tokenizer, next_token)[0] for prompt in prompts]
    assert rows[1] == prompts[1]  # of one token: nothing would be left to choose by


def test_added_tokens_count():
    tokenizer = CodeGenTokenizer(build_backend(), unk_token=END_OF_TEXT)
    ids = tokenizer("(~")["input_ids"]
    asked = []

    def next_token(ids, biases):
        asked.append(biases)
        return max(biases)

    assert heal([ids], tokenizer, next_token) == [ids] and asked == []  # no other token begins with it
    tokenizer.add_tokens(["~~~"])
    new = tokenizer.convert_tokens_to_ids("~~~")
    assert heal([ids], tokenizer, next_token) == [[*ids[:-1], new]]
    assert asked == [{ids[-1]: 11.0, new: 10.0}]


def test_errors(model_and_expected, tokenizer):
    model, own, _ = model_and_expected
    with pytest.raises(ValueError, match="^prompt 1 has no text: token_healing drops special tokens and white space"):
        heal([tokenizer(text)["input_ids"] for text in ("a", " \n<|endoftext|>")], tokenizer, lambda ids, biases: 0)
    nameless = codegen_fast.CodeGenForCausalLM(model.config, model._decoder)
    with pytest.raises(ValueError, match="^token_healing needs the tokenizer"):
        nameless.generate([own("def f(s")["input_ids"]], max_new_tokens=2, token_healing=True)


def test_no_start_up_cost_worth_the_name():
    """50,000 made-up tokens stand for CodeGen's; they are sorted once."""

    class Tokenizer:
        asked = 0

        def get_vocab(self):
            self.asked += 1
            return {f"{(i * 7919) % 50257:05d}": i for i in range(50257)}

        def __len__(self):
            return 50257

    tokenizer = Tokenizer()
    begin = time.perf_counter()
    for _ in range(100):
        assert len(list(_vocabulary(tokenizer).beginning_with("0123"))) == 10
    assert time.perf_counter() - begin < 2  # takes 0.03 to 0.12 s
    assert tokenizer.asked == 1


def test_tokenizers_of_transformers(model_and_expected):
    transformers = pytest.importorskip("transformers")
    model, own, results = model_and_expected
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, unk_token=END_OF_TEXT,
        pad_token=PAD)  # fmt: skip
    expected = results["batch"]
    ids = model.generate(torch.tensor(expected["ids"]), torch.tensor(expected["mask"]), max_new_tokens=STEPS,
                         do_sample=False, token_healing=True, tokenizer=theirs, eos_token_id=None,
                         pad_token_id=own.pad_token_id)  # fmt: skip
    assert ids.tolist() == expected["healed"]
