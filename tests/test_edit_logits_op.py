"""edit_logits against the reference, bit for bit, and against transformers' processors."""

from __future__ import annotations

import math
import random

import calls
import pytest
import reference
import torch
from devices import CPU, CUDA, per_device
from fences import bits, same
from transformers.generation.logits_process import (
    ExponentialDecayLengthPenalty,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from codegen_fast import ops

INF, NAN = math.inf, math.nan
VOCAB = 130

# Sequences over a few tokens, so that histories of them match. Biases are multiples of 1/4: any order gives their sum.
BIAS = (
    ([3], 1.5), ([5], -INF), ([1, 2], 2.25), ([2, 1, 2], -0.75), ([0, 3], 0.5), ([3, 3], 0.25), ([1, 1, 1, 4], 3.0),
    ([2, 3], -1.25), ([0, 1, 2], -4.0), ([129], 0.25),
)  # fmt: skip
BANNED = ([2], [0, 1], [1, 2, 3], [3, 0], [2, 2, 2, 2], [0, 129], [64, 1])

RULES = {
    "none": {},
    "sequence_bias": {"bias": BIAS},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.7},
    "no_repeat_1gram": {"no_repeat_ngram_size": 1},
    "no_repeat_2gram": {"no_repeat_ngram_size": 2},
    "no_repeat_4gram": {"no_repeat_ngram_size": 4},
    "no_repeat_long": {"no_repeat_ngram_size": 5000},
    "bad_words": {"banned": BANNED},
    "min_new_tokens": {"eos": [7, 100], "min_new_tokens": 3},
    "forced_eos": {"forced_eos": [100, 2], "forced_eos_after": 3},
    "forced_at_begin": {"forced_eos": [100], "forced_eos_after": 0},
    "remove_invalid_values": {"remove_invalid_values": True},
    "decay": {"eos": [7, 100, 7], "decay_start": 1, "decay_factor": 1.3},
    "decay_from_the_first": {"eos": [100], "decay_start": 0, "decay_factor": 1.01},
    "decay_shrinks": {"eos": [100], "decay_start": 0, "decay_factor": 0.9},
    "suppress": {"suppressed": [0, 1, 99, 1]},
    "begin_suppress": {"suppressed_at_begin": [2, 7]},
}
ALL = {
    "bias": BIAS, "repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "banned": BANNED, "eos": [7, 100],
    "min_new_tokens": 2, "forced_eos": [100], "forced_eos_after": 9, "remove_invalid_values": True, "decay_start": 3,
    "decay_factor": 1.1, "suppressed": [44, 45], "suppressed_at_begin": [8],
}  # fmt: skip
RULES["all"] = ALL


def batch(seed: int, lengths=(1, 2, 3, 4, 5, 12, 40, 300), vocab: int = VOCAB):
    """(logits, histories, prompt_lens): histories of few tokens, so that n-grams repeat; 0 to 12 of them are new."""
    generator = random.Random(seed)
    histories = [[generator.choice((0, 1, 2, 3, 3, 64)) % vocab for _ in range(n)] for n in lengths]
    prompt_lens = [max(0, n - generator.choice((0, 0, 1, 2, 3, 4, 9))) for n in lengths]
    logits = 3 * torch.randn(len(lengths), vocab, generator=torch.Generator().manual_seed(seed))
    return logits, histories, prompt_lens


def edited(device, logits, histories, prompt_lens, gap=0, **rules):
    return calls.edit_logits(device, logits, calls.logits_rules(device, histories, prompt_lens, **rules), gap=gap)


@per_device(name=tuple(RULES))
def test_every_rule_is_the_references(device, name):
    for seed in range(2 if device.emulated else 8):
        logits, histories, prompt_lens = batch(seed)
        got = edited(device, logits, histories, prompt_lens, gap=seed, **RULES[name])
        for row, history, prompt_len, result in zip(logits, histories, prompt_lens, got):
            assert same(result, reference.edit_logits(row, history, prompt_len, **RULES[name]))


def processors(prompt_len: int, **rules) -> LogitsProcessorList:
    """transformers' for the same rules and one row, in the order in which its generate() has them."""
    made = LogitsProcessorList()
    if rules.get("bias"):
        made.append(SequenceBiasLogitsProcessor([[list(sequence), value] for sequence, value in rules["bias"]]))
    if "repetition_penalty" in rules:
        made.append(RepetitionPenaltyLogitsProcessor(rules["repetition_penalty"]))
    if "no_repeat_ngram_size" in rules:
        made.append(NoRepeatNGramLogitsProcessor(rules["no_repeat_ngram_size"]))
    if rules.get("banned"):
        made.append(NoBadWordsLogitsProcessor([list(sequence) for sequence in rules["banned"]]))
    if "min_new_tokens" in rules:
        made.append(MinNewTokensLengthLogitsProcessor(prompt_len, rules["min_new_tokens"], rules["eos"]))
    if "forced_eos" in rules:
        made.append(ForcedEOSTokenLogitsProcessor(prompt_len + rules["forced_eos_after"] + 1, rules["forced_eos"]))
    if rules.get("remove_invalid_values"):
        made.append(InfNanRemoveLogitsProcessor())
    if "decay_start" in rules:
        decay = rules["decay_start"], rules["decay_factor"]
        made.append(ExponentialDecayLengthPenalty(decay, rules["eos"], prompt_len))
    if "suppressed" in rules:
        made.append(SuppressTokensLogitsProcessor(rules["suppressed"]))
    if "suppressed_at_begin" in rules:
        made.append(SuppressTokensAtBeginLogitsProcessor(rules["suppressed_at_begin"], prompt_len))
    return made


@per_device(name=tuple(RULES))
def test_every_rule_is_that_of_transformers(device, name):
    for seed in range(1 if device.emulated else 5):
        logits, histories, prompt_lens = batch(100 + seed)
        got = edited(device, logits, histories, prompt_lens, **RULES[name])
        for row, history, prompt_len, result in zip(logits, histories, prompt_lens, got):
            wanted = processors(prompt_len, **RULES[name])(torch.tensor([history]), row[None])[0]
            assert torch.equal(result, wanted)


@per_device(where=lambda device: not device.emulated)
def test_many_rows_of_a_large_vocabulary(device):
    """More rows than have scratch of their own, long lists, long histories."""
    vocab = 51200
    logits, histories, prompt_lens = batch(9, lengths=[1 + 37 * i % 900 for i in range(70)], vocab=vocab)
    generator = random.Random(1)
    histories = [[token if i % 3 else generator.randrange(vocab) for i, token in enumerate(h)] for h in histories]
    chosen = [generator.randrange(vocab) for _ in range(200)]
    rules = ALL | {
        "bias": [([token], 0.5) for token in chosen] + list(BIAS),
        "banned": [[generator.choice((0, 3)), token] for token in chosen],
        "suppressed": chosen[::3],
    }
    got = edited(device, logits, histories, prompt_lens, **rules)
    for row, history, prompt_len, result in zip(logits, histories, prompt_lens, got):
        assert same(result, reference.edit_logits(row, history, prompt_len, **rules))


@per_device()
def test_values_that_are_not_finite(device):
    logits, histories, prompt_lens = batch(3)
    logits[:, ::5], logits[:, 1::5], logits[:, 2::5], logits[2] = INF, -INF, NAN, NAN
    for name in ("none", "repetition_penalty", "remove_invalid_values", "decay", "suppress", "forced_eos", "all"):
        rules = RULES[name] | {"bias": ()}
        got = edited(device, logits, histories, prompt_lens, **rules)
        for row, history, prompt_len, result in zip(logits, histories, prompt_lens, got):
            assert same(result, reference.edit_logits(row, history, prompt_len, **rules))
            if name in ("repetition_penalty", "remove_invalid_values", "decay", "suppress", "forced_eos"):
                assert same(result, processors(prompt_len, **rules)(torch.tensor([history]), row[None])[0])


OUTSIDE = [-1, VOCAB, 2**31 - 1, -(2**31)]


@per_device()
def test_tokens_that_the_vocabulary_lacks_are_ignored(device):
    logits, histories, prompt_lens = batch(4)
    histories = [[*OUTSIDE, *history, *OUTSIDE[: i % 3]] for i, history in enumerate(histories)]
    prompt_lens = [len(history) - 2 for history in histories]
    rules = ALL | {
        "bias": [([token], 1.0) for token in OUTSIDE] + [([-1, VOCAB, 3], 1.0), ([-1], 2.0), ([-1, 5], 4.0)],
        "banned": [*([token] for token in OUTSIDE), [-1, 4], [-1, VOCAB, 6]],
        "eos": OUTSIDE + [7], "min_new_tokens": 5, "suppressed": OUTSIDE, "suppressed_at_begin": OUTSIDE,
        "no_repeat_ngram_size": 2, "decay_start": 0,
    }  # fmt: skip
    for more in ({}, {"forced_eos": OUTSIDE + [9], "forced_eos_after": 2}, {"no_repeat_ngram_size": 1}):
        got = edited(device, logits, histories, prompt_lens, **rules | more)
        for row, history, prompt_len, result in zip(logits, histories, prompt_lens, got):
            assert same(result, reference.edit_logits(row, history, prompt_len, **rules | more))


@per_device()
def test_starts_that_fit_no_list_are_ignored(device):
    """Memory stays in bounds whatever the lists hold: the last sequence is the only one that is whole."""
    own = dict(dtype=torch.int32)
    tokens = calls.guarded(device, torch.tensor([5, 6, 7, 8], **own))
    starts = calls.guarded(device, torch.tensor([-3, 2, 1, 1, 900, -(2**31), 2**31 - 1, 2, 4, 5, 3, 4], **own))
    values = calls.guarded(device, torch.full((11,), 2.0))
    logits, history = torch.zeros(1, VOCAB), [[1, 7]]
    rules = calls.logits_rules(device, history, [0], banned_tokens=tokens, banned_starts=starts)
    assert torch.nonzero(calls.edit_logits(device, logits, rules)[0]).flatten().tolist() == [8]
    rules = calls.logits_rules(device, history, [0], bias_tokens=tokens, bias_starts=starts, biases=values)
    assert calls.edit_logits(device, logits, rules)[0, 8] == 4.0  # [7, 8] and [8]
    for part in ([0], [4], [-1], [0, 0], [0, 5]):
        starts = calls.guarded(device, torch.tensor(part, **own))
        rules = calls.logits_rules(device, history, [0], banned_tokens=tokens, banned_starts=starts)
        assert not calls.edit_logits(device, logits, rules).any()


@per_device()
def test_idle_rows_stay_as_they_are(device):
    logits, histories, prompt_lens = batch(5)
    whole = edited(device, logits, histories, prompt_lens, **ALL)
    rows, columns = len(histories), max(map(len, histories)) + 3  # of logits_rules
    for name, values in {"history_len": (0, -1, -(2**31), columns + 1, 2**31 - 1),
                         "history_row": (-1, rows + 2, -(2**31), 2**31 - 1)}.items():  # fmt: skip
        for i, value in enumerate(values):
            got = edited(device, logits, histories, prompt_lens, put=(name, i, value), **ALL)
            assert torch.equal(bits(got[i]), bits(logits[i]))
            others = [b for b in range(rows) if b != i]
            assert torch.equal(bits(got[others]), bits(whole[others]))


@per_device()
def test_rows_may_share_a_history_and_fill_its_columns(device):
    """As the samples of a prompt do, and a row at the end of its columns."""
    logits, histories, prompt_lens = batch(6, lengths=(20,))
    history = torch.tensor(histories, dtype=torch.int32)
    rows = logits.repeat(3, 1) + torch.arange(3.0)[:, None]
    same_row, lengths, prompts = (torch.tensor([n] * 3, dtype=torch.int32) for n in (0, 20, prompt_lens[0]))
    given = (calls.guarded(device, values) for values in (history, same_row, lengths, prompts))
    got = calls.edit_logits(device, rows, ops.LogitsRules(*given, repetition_penalty=1.5, no_repeat_ngram_size=2))
    for row, result in zip(rows, got):
        wanted = reference.edit_logits(row, histories[0], 0, repetition_penalty=1.5, no_repeat_ngram_size=2)
        assert torch.equal(result, wanted)


@per_device()
def test_a_row_does_not_depend_on_its_company(device):
    logits, histories, prompt_lens = batch(7, lengths=(30, 2, 17, 9, 30, 1, 12))
    logits[3, 4] = NAN

    def chosen(rows):
        picked = [histories[i] for i in rows], [prompt_lens[i] for i in rows]
        return edited(device, logits[rows], *picked, gap=len(rows), **ALL)

    whole = chosen(list(range(7)))
    for surroundings in device.variations():
        with surroundings():
            for rows in ([3], [6, 0], [2, 2, 5], list(range(7))[::-1]):
                assert torch.equal(bits(chosen(rows)), bits(whole[rows]))


@per_device()
def test_no_rows_and_no_rules(device):
    assert edited(device, torch.empty(0, VOCAB), [], [], **ALL).shape == (0, VOCAB)
    logits, histories, prompt_lens = batch(8)
    lists = ("eos", "forced_eos", "suppressed", "suppressed_at_begin", "bias_tokens", "bias_starts", "banned_tokens")
    for rules in ({}, {name: [] for name in lists}, {name: None for name in (*lists, "biases", "banned_starts")}):
        got = edited(device, logits, histories, prompt_lens, min_new_tokens=5, forced_eos_after=0, **rules)
        assert torch.equal(bits(got), bits(logits))


def arguments(device) -> dict:
    def zeros(*shape, dtype=torch.int32):
        return torch.zeros(shape, dtype=dtype, device=device.memory)

    return {
        "history": zeros(4, 9), "history_row": zeros(3), "history_len": zeros(3), "prompt_len": zeros(3),
        "bias_tokens": zeros(5), "bias_starts": zeros(3), "biases": zeros(2, dtype=torch.float32),
        "banned_tokens": zeros(5), "banned_starts": zeros(3), "eos": zeros(2), "forced_eos": zeros(2),
        "suppressed": zeros(2), "suppressed_at_begin": zeros(2),
    }  # fmt: skip


LISTS = ("bias_tokens", "bias_starts", "banned_tokens", "banned_starts", "eos", "forced_eos", "suppressed",
         "suppressed_at_begin")  # fmt: skip
WRONG = {
    "history": (lambda t: t[0], ValueError, r"history: expected shape \(any, any\), got \(9,\)"),
    "history_row": (lambda t: t[:2], ValueError, r"history_row: expected shape \(3,\), got \(2,\)"),
    "history_len": (lambda t: t.long(), TypeError, "history_len: expected dtype int32, got int64"),
    "prompt_len": (lambda t: t.repeat(2)[::2], ValueError, "prompt_len: "),
    "biases": (lambda t: t[:1], ValueError, r"biases: expected shape \(2,\), one entry a sequence .*, got \(1,\)"),
    "repetition_penalty": (0.0, ValueError, "repetition_penalty: expected a finite number above 0, got 0"),
    "no_repeat_ngram_size": (-1, ValueError, "no_repeat_ngram_size: expected at least 0, got -1"),
    "decay_factor": (INF, ValueError, "decay_factor: expected a finite number, got inf"),
} | {name: (lambda t: t.long(), TypeError, f"{name}: expected dtype int32, got int64") for name in LISTS}  # fmt: skip


@per_device((CPU, *CUDA), name=tuple(WRONG))
def test_wrong_arguments(device, name):
    given, logits = arguments(device), torch.zeros(3, 20, device=device.memory)
    workspace = calls.scratch(device, ops.edit_logits_workspace(3, 20, device.memory.type)).tensor
    ops.edit_logits(logits, ops.LogitsRules(**given), workspace)
    change, kind, words = WRONG[name]
    value = change(given[name]) if callable(change) else change
    with pytest.raises(kind, match=f"^{words}"):
        ops.edit_logits(logits, ops.LogitsRules(**given | {name: value}), workspace)


@per_device((CPU, *CUDA))
def test_other_wrong_arguments(device):
    given, own = arguments(device), dict(device=device.memory)
    rules = ops.LogitsRules(**given)
    workspace = calls.scratch(device, ops.edit_logits_workspace(3, 20, device.memory.type)).tensor
    calls.refuses_wrong_logits(device, ops.edit_logits, rules, (3, 20), workspace)
    with pytest.raises(ValueError, match=r"^history_row: expected shape \(2,\), got \(3,\)"):
        ops.edit_logits(torch.zeros(2, 20, **own), rules, workspace)
    with pytest.raises(ValueError, match="^bias_starts: expected the start of every sequence of bias_tokens"):
        ops.edit_logits(torch.zeros(3, 20, **own), ops.LogitsRules(**given | {"bias_starts": None}), workspace)
    with pytest.raises(TypeError):  # the rules have names
        ops.LogitsRules(*given.values())
