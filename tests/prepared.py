"""Calls of generate, prepared as it prepares them and not run, and the errors that they end in."""
from __future__ import annotations

import contextlib

import pytest
import transformers

from codegen_fast.generation import GenerationConfig
from codegen_fast.generation.request import prepare


@contextlib.contextmanager
def fails(kind: type[Exception], *words: str):
    """The block raises exactly `kind`, with every word in a message of at most three sentences."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.type is kind
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message) < 400 and "\n" not in message


def call(**knobs):
    """prepare() as generate() uses it, on two prompts of 3 tokens."""
    stored = knobs.pop("stored", GenerationConfig())
    given = knobs.pop("generation_config", None)
    ids = knobs.pop("input_ids", [[5, 6, 7], [8, 9, 10]])
    mask = knobs.pop("attention_mask", None)
    return prepare(ids, mask, given, knobs, stored=stored, vocab_size=100, n_positions=64)


@pytest.fixture(scope="module")
def theirs():
    config = transformers.CodeGenConfig(vocab_size=20, n_positions=32, n_ctx=32, n_embd=16, n_layer=1, n_head=4,
                                        rotary_dim=4)
    return transformers.CodeGenForCausalLM(config)
