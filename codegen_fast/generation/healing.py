"""Token healing: the last token of a prompt is chosen again among those that begin with its text, as in transformers.

A prompt may end in the middle of what would be one token ("http:" before "//"), and what the model has learned then
never follows. Rules of transformers 5.23 that are kept, because programs see them: special tokens, and white space
around a prompt, go; a bias of 10 on every candidate and 11 on the token that stood there choose greedily among them; in
CodeGen's vocabularies a last token that begins with a space stays as it is. The choice is greedy also where
model.generation_config samples, and a prompt of one token stays as it is, which transformers heals if it is padded.
"""
from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..model import CodeGenForCausalLM
    from .request import Request

_BIAS, _MORE_FOR_THE_OLD = 10.0, 1.0

# Chooses the token that follows token ids, greedily after adding {token: bias} to the logits.
NextToken = Callable[[list[int], dict[int, float]], int]


def healed(model: CodeGenForCausalLM, request: Request, tokenizer: Any) -> list[list[int]]:
    """The prompts of a call, healed: token ids without padding, one list a prompt.

    As in transformers, the defaults of the model's generation_config hold while it chooses, and not the call's knobs.
    Raises ValueError without a tokenizer, and where white space is all that a prompt has.
    """
    if tokenizer is None:
        raise ValueError("token_healing needs the tokenizer, to see the text of the prompt: pass tokenizer=")

    def next_token(ids: list[int], biases: dict[int, float]) -> int:
        out = model.generate(torch.tensor([ids], device="cpu"), torch.ones(1, len(ids), dtype=torch.long, device="cpu"),
                             max_new_tokens=1, sequence_bias={(token,): bias for token, bias in biases.items()},
                             do_sample=False, num_beams=1, num_return_sequences=1, token_healing=False,
                             return_dict_in_generate=False, tokenizer=tokenizer)
        return int(out[0, -1])

    return heal([prompt.tolist() for prompt in request.prompts], tokenizer, next_token)


def heal(prompts: list[list[int]], tokenizer: Any, next_token: NextToken) -> list[list[int]]:
    """Prompts (token ids) -> prompts whose last token may be a longer one. What a prompt becomes depends on it alone.

    tokenizer: ours or one of transformers. Raises ValueError for a prompt of white space and special tokens alone.
    """
    rows = []
    for i, prompt in enumerate(prompts):
        ids = list(tokenizer(tokenizer.decode(prompt, skip_special_tokens=True).strip())["input_ids"])
        if not ids:
            raise ValueError(f"prompt {i} has no text: token_healing drops special tokens and white space around a "
                             "prompt; leave token_healing out, or give it text")
        biases = _candidates(tokenizer, ids[-1])
        if len(biases) > 1 and len(ids) > 1:  # something must be left to choose by
            ids[-1] = next_token(ids[:-1], biases)
        rows.append(ids)
    return rows


def _candidates(tokenizer: Any, last: int) -> dict[int, float]:
    """{token: bias} of the tokens that begin with the text of `last`; empty where it is none of them."""
    prefix = tokenizer.decode([last])
    space = tokenizer.convert_tokens_to_ids(" ")
    if space is not None:
        # Meant to give a vocabulary's sign for a space; where " " is unknown, it gives the first letter of unk_token.
        prefix = prefix.replace(" ", tokenizer.convert_ids_to_tokens(space)[0])
    tokens = set(_vocabulary(tokenizer).beginning_with(prefix))
    if last not in tokens:  # half a character, or spelled with other signs than its text
        return {}
    return {token: _BIAS + _MORE_FOR_THE_OLD * (token == last) for token in tokens}


class _Vocabulary:
    """A tokenizer's tokens in alphabetical order."""

    def __init__(self, tokenizer: Any):
        self.size = len(tokenizer)
        ids = tokenizer.get_vocab()
        self._spellings = sorted(ids)
        self._ids = [ids[spelling] for spelling in self._spellings]

    def beginning_with(self, prefix: str) -> Iterable[int]:
        first = bisect_left(self._spellings, prefix)
        places = range(first, len(self._spellings))
        return (self._ids[i] for i in takewhile(lambda i: self._spellings[i].startswith(prefix), places))


_vocabularies: weakref.WeakKeyDictionary[Any, _Vocabulary] = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Any) -> _Vocabulary:
    """Sorted once a tokenizer, and again when tokens were added: 50,000 tokens take a tenth of a second."""
    known = _vocabularies.get(tokenizer)
    if known is None or known.size != len(tokenizer):
        known = _vocabularies[tokenizer] = _Vocabulary(tokenizer)
    return known
