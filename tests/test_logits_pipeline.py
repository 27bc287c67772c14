"""What a call does to the logits of a step: the rules it binds, the order of callbacks, and what these may return."""
from __future__ import annotations

import pytest
import torch

from codegen_fast.generation.config import Settings
from codegen_fast.generation.processors import LogitsPipeline
from codegen_fast.generation.rules import Rules

VOCAB = 10
HISTORY = torch.tensor([[3, 4, 3, 0], [5, 0, 0, 0]], dtype=torch.int32)
ROWS = torch.tensor([0, 1], dtype=torch.int32)
LENS = torch.tensor([3, 1], dtype=torch.int32)
PROMPT_LENS = torch.tensor([2, 1], dtype=torch.int32)
IDS = torch.tensor([[3, 4, 3], [0, 0, 5]])


def pipeline(prefix_fn=None, processors=(), num_beams=1, steps=4, **settings):
    return LogitsPipeline(Rules.of(Settings(**settings), 2, steps), prefix_fn, processors, num_beams)


def applied(pipe, logits=None, ids=lambda: IDS):
    logits = torch.arange(1.0, 2 * VOCAB + 1).view(2, VOCAB) if logits is None else logits
    got = pipe.apply(logits, ids, HISTORY, ROWS, LENS, PROMPT_LENS)
    assert got is logits
    return got


# ---- Rules ---------------------------------------------------------------------------------------


def test_settings_that_change_nothing_make_no_rules():
    assert Rules.of(Settings(), 3, 5).is_empty
    # Nobody gets so far, or there is no such token.
    assert Rules.of(Settings(exponential_decay_length_penalty=(4, 2.0), eos_token_ids=(1,)), 3, 5).is_empty
    assert Rules.of(Settings(min_length=3, eos_token_ids=(1,)), 3, 5).is_empty
    assert Rules.of(Settings(min_new_tokens=3), 3, 5).is_empty
    assert Rules.of(Settings(suppress_tokens=(2**40,)), 3, 5).is_empty
    pipe = pipeline()
    assert not pipe.has_callbacks
    assert torch.equal(applied(pipe, torch.ones(2, VOCAB), ids=None), torch.ones(2, VOCAB))


def test_lengths_count_columns():
    """min_length and the forced eos token are for the width of the batch, as in transformers."""
    early = pipeline(min_length=4, eos_token_ids=(9,))  # of 2 columns: the first two new tokens are no eos
    assert applied(early)[:, 9].tolist() == [-torch.inf, -torch.inf]
    assert applied(pipeline(min_length=3, eos_token_ids=(9,)))[:, 9].tolist() == [10.0, -torch.inf]
    forced = applied(pipeline(forced_eos_token_ids=(7,), steps=2))  # the row with one new token gets its last
    assert forced[0].tolist() == [-torch.inf] * 7 + [0.0] + [-torch.inf] * 2 and forced[1, 0] == 11.0


def test_operands_are_made_once_a_device():
    rules = Rules.of(Settings(suppress_tokens=(3,)), 2, 4)
    assert rules._tensors(torch.device("cpu")) is rules._tensors(torch.device("cpu"))


def test_halves_leave_out_what_is_not_there():
    operands = HISTORY, ROWS, LENS, PROMPT_LENS
    first, second = Rules.of(Settings(repetition_penalty=2.0), 2, 4).halves(*operands)
    assert first is not None and second is None
    decay = Settings(exponential_decay_length_penalty=(0, 2.0), eos_token_ids=(1,))
    first, second = Rules.of(decay, 2, 4).halves(*operands)
    assert first is None and second is not None
    assert Rules.of(Settings(), 2, 4).halves(*operands) == (None, None)


# ---- Callbacks -----------------------------------------------------------------------------------


def test_the_order_is_first_rules_prefix_second_rules_processors():
    seen = []

    def allow(batch_id, ids):
        seen.append((batch_id, ids.tolist()))
        return [3, 4]

    def look(ids, scores):
        seen.append(scores.tolist())
        return scores

    applied(pipeline(allow, [look], bad_words_ids=((4,),), remove_invalid_values=True, suppress_tokens=(3,)))
    assert seen[:2] == [(0, [3, 4, 3]), (1, [0, 0, 5])]
    lowest = torch.finfo(torch.float32).min
    assert seen[2] == [[lowest] * 3 + [-torch.inf] + [lowest] * 6] * 2


def test_where_all_that_is_allowed_is_banned_the_prefix_function_wins():
    got = applied(pipeline(lambda batch_id, ids: [2, 7] if batch_id else [2, 3], bad_words_ids=((2,), (7,))))
    assert got[0].tolist() == [-torch.inf] * 3 + [4.0] + [-torch.inf] * 6
    assert got[1].tolist() == [0.0 if token in (2, 7) else -torch.inf for token in range(VOCAB)]
    # One beam that has something left is enough for its prompt.
    allow = {(3, 4, 3): [2], (0, 0, 5): [4]}
    got = applied(pipeline(lambda batch_id, ids: allow[tuple(ids.tolist())], num_beams=2, bad_words_ids=((2,),)))
    assert got[0].isneginf().all() and got[1, 4] == 15.0


def test_rows_belong_to_prompts():
    batches = []
    applied(pipeline(lambda batch_id, ids: batches.append(batch_id) or [1], num_beams=2))
    assert batches == [0, 0]


def test_a_processor_may_keep_what_it_gets_and_is_called_once_a_step():
    kept = []

    def keep(ids, scores):
        kept.append(scores)
        return scores

    pipe = pipeline(processors=[keep, keep])
    logits = torch.ones(2, VOCAB)
    for step in range(3):
        logits.fill_(step)
        applied(pipe, logits)
    assert [scores[0, 0].item() for scores in kept] == [0, 1, 2]


def test_processors_follow_one_another_in_any_float_type_and_may_write_in_place():
    got = applied(pipeline(processors=[lambda ids, scores: scores.double() + 1, lambda ids, scores: scores.mul_(2)]))
    assert got.dtype == torch.float32 and got[0, :2].tolist() == [4.0, 6.0]


@pytest.mark.parametrize("returned, words", [
    (None, ["NoneType"]), (torch.ones(2, 3), ["(2, 3)", "(2, 10)"]), (torch.ones(2, VOCAB).long(), ["int64"]),
    ([[1.0] * VOCAB] * 2, ["list"]),
])
def test_a_processor_that_returns_something_else_is_named(returned, words):
    def broken(ids, scores):
        return returned

    with pytest.raises(TypeError) as caught:
        applied(pipeline(processors=[broken]))
    assert all(word in str(caught.value) for word in ["logits_processor", "broken", *words])


@pytest.mark.parametrize("returned, kind, words", [
    (None, TypeError, ["None", "list"]), ("abc", TypeError, ["'abc'"]), ([1.5], TypeError, ["1.5"]),
    ([], ValueError, ["no tokens", "batch_id 0"]), ([3, VOCAB], ValueError, ["10", "0 to 9"]),
    ([-1], ValueError, ["-1"]),
])
def test_a_prefix_function_that_returns_something_else_is_named(returned, kind, words):
    with pytest.raises(kind) as caught:
        applied(pipeline(lambda batch_id, ids: returned))
    assert all(word in str(caught.value) for word in ["prefix_allowed_tokens_fn", *words])


@pytest.mark.parametrize("returned", [[1, 2], (1, 2), torch.tensor([1, 2]), range(1, 3), {1: 0, 2: 0}])
def test_a_prefix_function_may_return_any_collection(returned):
    got = applied(pipeline(lambda batch_id, ids: returned))
    assert (~got.isneginf()).nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
