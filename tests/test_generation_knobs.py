"""The knobs of generate: each of transformers' is classified, and checked as transformers checks it or better."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import transformers
from prepared import call, fails, theirs  # noqa: F401 (theirs: a fixture)

from codegen_fast.generation import GenerationConfig
from codegen_fast.generation.knobs import ARGUMENTS, KNOBS
from codegen_fast.generation.request import prepare

VALUES = [True, 3, 0.37, "text", [[5]]]  # of each kind, for knobs that are refused


# ---- Which knobs there are -----------------------------------------------------------------------


def test_defaults_are_those_of_transformers():
    theirs = transformers.GenerationConfig._get_default_generation_params()
    assert {name: KNOBS[name].default for name in theirs} == theirs


@pytest.mark.parametrize("name", [k.name for k in KNOBS.values() if k.state == "never"])
def test_knobs_that_are_refused_say_what_to_do_instead(name):
    call(**{name: None})
    call(**{name: KNOBS[name].default})
    for value in VALUES:
        if value != KNOBS[name].default:
            with fails(NotImplementedError, f"{name}=", "codegen_fast", KNOBS[name].instead):
                call(**{name: value})
    if name == "assistant_ensemble_weight":  # without an assistant it does nothing in transformers either
        return
    with fails(NotImplementedError, f"{name}=", "generation_config"):
        call(stored=GenerationConfig(**{name: VALUES[2]}))


@pytest.mark.parametrize("name", [k.name for k in ARGUMENTS.values() if k.state == "never"])
def test_arguments_that_are_refused_say_what_to_do_instead(name):
    call(**{name: None})
    call(**{name: ARGUMENTS[name].default})
    with fails(NotImplementedError, f"{name}=", ARGUMENTS[name].instead):
        call(**{name: object()})


@pytest.mark.parametrize("name", [k.name for k in (*KNOBS.values(), *ARGUMENTS.values()) if k.state == "hint"])
def test_hints_are_accepted(name):
    assert call(**{name: "anything"}).steps == 20


def test_lists_of_callbacks():
    assert call(stopping_criteria=transformers.StoppingCriteriaList(), logits_processor=[]).callbacks.criteria == ()
    for name in ("stopping_criteria", "logits_processor"):
        for value in (5, [5], len):
            with fails(TypeError, name):
                call(**{name: value})
    with fails(TypeError, "prefix_allowed_tokens_fn", "5"):
        call(prefix_allowed_tokens_fn=5)


@pytest.mark.parametrize("wrong, right", [("max_new_token", "max_new_tokens"), ("temprature", "temperature"),
                                          ("topk", "top_k"), ("seeds", "seed"), ("attn_mask", "attention_mask"),
                                          ("num_return_sequence", "num_return_sequences"),
                                          ("repetition_penality", "repetition_penalty"), ("num_beam", "num_beams"),
                                          ("max_tokens", "max_new_tokens"), ("do_sampling", "do_sample")])
def test_an_unknown_knob_names_its_nearest(wrong, right):
    with fails(TypeError, repr(wrong), repr(right)):
        call(**{wrong: 1})


@pytest.mark.parametrize("name", ["zzzzzz", "best_of", "temp", "num_items_in_batch"])
def test_an_unknown_knob_with_no_near_one(name):
    with fails(TypeError, repr(name)) as caught:
        call(**{name: 1})
    assert "did you mean" not in str(caught.value)


# ---- Values out of range -------------------------------------------------------------------------

SAMPLING = {"do_sample": True}
EOS = 3


@pytest.mark.parametrize("knobs, words", [
    ({"max_new_tokens": 0}, ["max_new_tokens=0", "1 or more"]),
    ({"max_new_tokens": -3}, ["max_new_tokens=-3"]),
    ({"max_new_tokens": 2.5}, ["max_new_tokens=2.5", "int"]),
    ({"max_new_tokens": True}, ["max_new_tokens=True"]),
    ({"max_new_tokens": np.True_}, ["max_new_tokens="]),
    ({"max_new_tokens": math.inf}, ["max_new_tokens=inf"]),
    ({"max_new_tokens": "7"}, ["max_new_tokens='7'"]),
    ({"max_length": 0}, ["max_length=0"]),
    ({"max_length": math.nan}, ["max_length=nan"]),
    ({"do_sample": 2}, ["do_sample=2", "True or False"]),
    ({"do_sample": torch.tensor([True])}, ["do_sample=tensor([True])"]),
    ({"do_sample": math.nan}, ["do_sample=nan"]),
    ({"do_sample": "yes"}, ["do_sample='yes'"]),
    ({**SAMPLING, "temperature": 0}, ["temperature=0", "do_sample=False"]),
    ({**SAMPLING, "temperature": 0.0}, ["temperature=0", "do_sample=False"]),
    ({**SAMPLING, "temperature": -0.5}, ["temperature=-0.5", "above 0"]),
    ({**SAMPLING, "temperature": math.nan}, ["temperature=nan"]),
    ({**SAMPLING, "temperature": math.inf}, ["temperature=inf"]),
    ({**SAMPLING, "temperature": "hot"}, ["temperature='hot'"]),
    ({**SAMPLING, "temperature": True}, ["temperature=True"]),
    ({**SAMPLING, "temperature": torch.tensor(True)}, ["temperature=tensor(True)"]),
    ({**SAMPLING, "temperature": torch.tensor([0.5])}, ["temperature=tensor([0.5"]),
    ({**SAMPLING, "top_k": -1}, ["top_k=-1", "0 or None"]),
    ({**SAMPLING, "top_k": 1.5}, ["top_k=1.5"]),
    ({**SAMPLING, "top_k": True}, ["top_k=True"]),
    ({**SAMPLING, "top_p": 1.5}, ["top_p=1.5", "0 to 1"]),
    ({**SAMPLING, "top_p": -0.1}, ["top_p=-0.1"]),
    ({**SAMPLING, "top_p": math.nan}, ["top_p=nan"]),
    ({**SAMPLING, "num_return_sequences": 0}, ["num_return_sequences=0"]),
    ({**SAMPLING, "num_return_sequences": 2.0}, ["num_return_sequences=2.0"]),
    ({"num_return_sequences": 2}, ["num_return_sequences=2", "do_sample=True"]),
    ({"eos_token_id": "2"}, ["eos_token_id='2'"]),
    ({"eos_token_id": 2.0}, ["eos_token_id=2.0"]),
    ({"eos_token_id": [True]}, ["eos_token_id=[True]"]),
    ({"pad_token_id": "0"}, ["pad_token_id='0'"]),
    ({"pad_token_id": [0]}, ["pad_token_id=[0]"]),
    ({"bos_token_id": 1.0}, ["bos_token_id=1.0"]),
    ({"min_length": -1.5}, ["min_length=-1.5", "0 or more"]),
    ({"min_new_tokens": 1.5}, ["min_new_tokens=1.5"]),
    ({"max_time": -1}, ["max_time=-1", "seconds"]),
    ({"max_time": "soon"}, ["max_time='soon'"]),
    ({"stop_strings": []}, ["stop_strings=[]"]),
    ({"stop_strings": ["a", ""]}, ["stop_strings=['a', '']", "empty"]),
    ({"early_stopping": 0.5}, ["early_stopping=0.5", "'never'"]),
    ({"early_stopping": "sometimes"}, ["early_stopping='sometimes'"]),
    ({"early_stopping": 2}, ["early_stopping=2"]),
    ({"num_beams": 0}, ["num_beams=0"]),
    ({"num_beams": 2, "num_return_sequences": 3}, ["num_return_sequences=3", "num_beams=2"]),
    ({"length_penalty": math.inf}, ["length_penalty=inf"]),
    ({**SAMPLING, "min_p": 1.5}, ["min_p=1.5", "0 to 1"]),
    ({**SAMPLING, "min_p": -0.1}, ["min_p=-0.1"]),
    ({**SAMPLING, "typical_p": 0.0}, ["typical_p=0.0", "above 0"]),
    ({**SAMPLING, "typical_p": 1.1}, ["typical_p=1.1"]),
    ({**SAMPLING, "epsilon_cutoff": -0.1}, ["epsilon_cutoff=-0.1"]),
    ({**SAMPLING, "epsilon_cutoff": 1.0}, ["epsilon_cutoff=1.0", "below 1"]),
    ({**SAMPLING, "eta_cutoff": math.nan}, ["eta_cutoff=nan"]),
    ({"repetition_penalty": 0}, ["repetition_penalty=0", "above 0"]),
    ({"repetition_penalty": -1.5}, ["repetition_penalty=-1.5"]),
    ({"repetition_penalty": math.inf}, ["repetition_penalty=inf"]),
    ({"no_repeat_ngram_size": 2.0}, ["no_repeat_ngram_size=2.0"]),
    ({"bad_words_ids": []}, ["bad_words_ids=[]"]),
    ({"bad_words_ids": [5]}, ["bad_words_ids=[5]", "list of lists"]),
    ({"bad_words_ids": [[5], []]}, ["bad_words_ids=[[5], []]"]),
    ({"bad_words_ids": [[-1]]}, ["bad_words_ids=[[-1]]"]),
    ({"bad_words_ids": [["a"]]}, ["bad_words_ids=[['a']]"]),
    ({"sequence_bias": {}}, ["sequence_bias={}"]),
    ({"sequence_bias": 3}, ["sequence_bias=3", "dict"]),
    ({"sequence_bias": {5: 1.0}}, ["sequence_bias={5: 1.0}"]),
    ({"sequence_bias": {(): 1.0}}, ["sequence_bias={(): 1.0}"]),
    ({"sequence_bias": {(5,): "x"}}, ["sequence_bias={(5,): 'x'}"]),
    ({"sequence_bias": {(5,): math.nan}}, ["sequence_bias={(5,): nan}"]),
    ({"sequence_bias": {(5,): math.inf}}, ["sequence_bias={(5,): inf}", "below infinity"]),
    ({"sequence_bias": [[[5], 1.0, 2.0]]}, ["sequence_bias=[[[5], 1.0, 2.0]]"]),
    ({"sequence_bias": [[[-5], 1.0]]}, ["sequence_bias=[[[-5], 1.0]]"]),
    ({"suppress_tokens": [-1]}, ["suppress_tokens=[-1]"]),
    ({"begin_suppress_tokens": [True]}, ["begin_suppress_tokens=[True]"]),
    ({"forced_eos_token_id": -1}, ["forced_eos_token_id=-1"]),
    ({"forced_eos_token_id": [3, -1]}, ["forced_eos_token_id=[3, -1]"]),
    ({"forced_eos_token_id": 3, "suppress_tokens": [3, 4]}, ["forced_eos_token_id=[3]", "suppress_tokens"]),
    ({"exponential_decay_length_penalty": (1, 1.5)}, ["exponential_decay_length_penalty", "eos_token_id"]),
    ({"exponential_decay_length_penalty": (-1, 1.5)}, ["exponential_decay_length_penalty=(-1, 1.5)"]),
    ({"exponential_decay_length_penalty": (1,)}, ["exponential_decay_length_penalty=(1,)"]),
    ({"exponential_decay_length_penalty": (1, math.nan)}, ["exponential_decay_length_penalty=(1, nan)"]),
    ({"renormalize_logits": -1}, ["renormalize_logits=-1"]),
    ({"output_scores": "yes"}, ["output_scores='yes'"]),
    ({"use_cache": 0.0}, ["use_cache=0.0", "True or False"]),
    ({"prompt_lookup_num_tokens": 0}, ["prompt_lookup_num_tokens=0"]),
    ({"max_matching_ngram_size": -1}, ["max_matching_ngram_size=-1"]),
    ({"num_assistant_tokens": 0.5}, ["num_assistant_tokens=0.5"]),
    ({"num_assistant_tokens_schedule": "wild"}, ["num_assistant_tokens_schedule='wild'", "'heuristic'"]),
    ({"assistant_confidence_threshold": math.nan}, ["assistant_confidence_threshold=nan"]),
    ({"return_logprobs": -1}, ["return_logprobs=-1"]),
    ({"max_batch_size": 0}, ["max_batch_size=0"]),
    ({"seed": -1}, ["seed=-1", "2**64"]),
    ({"seed": 2**64}, ["seed=18446744073709551616"]),
    ({"seed": 1.0}, ["seed=1.0"]),
    ({"seed": True}, ["seed=True"]),
    ({"seed": "7"}, ["seed='7'"]),
    ({"seed": [1, 2, 3]}, ["3 values", "(2)"]),
    ({"seed": [1, -2]}, ["seed=-2"]),
    ({"sample_offset": -1}, ["sample_offset=-1"]),
    ({"sample_offset": 2**31}, ["sample_offset=2147483648"]),
    ({"sample_offset": 1.0}, ["sample_offset=1.0"]),
    ({"sample_offset": [0, -1]}, ["sample_offset=[0, -1]", "one per prompt"]),
    ({"sample_offset": [1, 2, 3]}, ["3 values", "(2)"]),
    ({"sample_offset": [1, 2], "num_beams": 2, "do_sample": True}, ["num_beams=1"]),
])
def test_values_out_of_range(knobs, words):
    with fails(ValueError, *words):
        call(**knobs)


@pytest.mark.parametrize("knobs, words", [
    ({"stop_strings": 5}, ["stop_strings=5", "text"]),
    ({"stop_strings": ["a", 5]}, ["stop_strings=['a', 5]"]),
    ({"suppress_tokens": 5}, ["suppress_tokens=5", "list"]),
    ({"begin_suppress_tokens": torch.tensor(5)}, ["begin_suppress_tokens=tensor(5)"]),
    ({"exponential_decay_length_penalty": 5}, ["exponential_decay_length_penalty=5"]),
])
def test_values_of_another_type(knobs, words):
    with fails(TypeError, *words):
        call(**knobs)


REFUSED_BY_BOTH = [
    {"max_new_tokens": 0}, {"max_new_tokens": -3}, {"max_length": 2}, {"min_length": 2.5, "eos_token_id": 3},
    {"min_new_tokens": 1.5, "eos_token_id": 3}, {"early_stopping": "sometimes"}, {"early_stopping": 0.5},
    {"num_beams": 2, "num_return_sequences": 3}, {"num_return_sequences": 2}, {**SAMPLING, "temperature": 0.0},
    {**SAMPLING, "temperature": -1.0}, {**SAMPLING, "temperature": "hot"}, {**SAMPLING, "top_k": -1},
    {**SAMPLING, "top_k": 1.5}, {**SAMPLING, "top_p": -0.5}, {**SAMPLING, "min_p": -0.1}, {**SAMPLING, "min_p": 1.5},
    {**SAMPLING, "typical_p": 0.0}, {**SAMPLING, "typical_p": -1.0}, {"repetition_penalty": 0.0},
    {"repetition_penalty": -1.0}, {"repetition_penalty": "x"}, {"no_repeat_ngram_size": 2.5}, {"bad_words_ids": []},
    {"bad_words_ids": 5}, {"bad_words_ids": [5]}, {"bad_words_ids": [[-1]]}, {"bad_words_ids": [[25]]},
    {"sequence_bias": {}}, {"sequence_bias": []}, {"sequence_bias": 3}, {"sequence_bias": {5: 1.0}},
    {"sequence_bias": {(-1,): 1.0}}, {"sequence_bias": {(): 1.0}}, {"sequence_bias": {(5,): "x"}},
    {"sequence_bias": [[[5], "x"]]}, {"sequence_bias": [[5, 1.0]]}, {"sequence_bias": {(25,): 1.0}},
    {"suppress_tokens": 5}, {"begin_suppress_tokens": 5}, {"suppress_tokens": ["x"]}, {"forced_eos_token_id": -1},
    {"forced_eos_token_id": [3, -1]}, {"forced_eos_token_id": 3, "suppress_tokens": [3]},
    {"exponential_decay_length_penalty": 5, "eos_token_id": 3}, {"early_stopping": torch.tensor(True)},
    {"exponential_decay_length_penalty": (1, 1.5), "eos_token_id": -1}, {"forced_eos_token_id": []},
    {**SAMPLING, "top_k": 5.0}, {"min_length": 2.0, "eos_token_id": 3}, {"prompt_lookup_num_tokens": 0},
    {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": -1}, {"logits_processor": 5},
    {"stopping_criteria": [5]}, {"prefix_allowed_tokens_fn": 5},
]


@pytest.mark.parametrize("knobs", REFUSED_BY_BOTH, ids=str)
def test_where_transformers_refuses_so_do_we_with_the_same_type(theirs, knobs):
    knobs = {"max_new_tokens": 4, **knobs} if "max_length" not in knobs else knobs
    with pytest.raises(Exception) as caught:
        theirs.generate(torch.tensor([[5, 6, 7]]), **knobs)
    with fails(caught.type):
        prepare([[5, 6, 7]], None, None, knobs, stored=GenerationConfig(), vocab_size=20, n_positions=32)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
def test_what_transformers_takes_is_taken(theirs):
    for knobs in ({"bad_words_ids": [[3], [4, 5]], "eos_token_id": 3}, {"begin_suppress_tokens": []},
                  {"sequence_bias": [[[5], -2.0]]}, {"sequence_bias": {(5,): -math.inf}}, {"max_time": 0.0},
                  {"min_length": 30, "eos_token_id": 3}, {"forced_eos_token_id": [3, 4]}, {"suppress_tokens": []}):
        theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, **knobs)
        call(max_new_tokens=2, **knobs)


def test_numbers_of_numpy_and_torch_are_numbers():
    request = call(max_new_tokens=np.int64(5), top_k=torch.tensor(7), temperature=np.float32(0.5), do_sample=True,
                   top_p=np.float64(0.5), seed=np.int64(3), eos_token_id=np.array([4, 2]), pad_token_id=np.int32(0))
    settings = request.settings
    assert (request.steps, settings.top_k, settings.temperature, settings.top_p) == (5, 7, 0.5, 0.5)
    assert settings.eos_token_ids == (4, 2) and settings.pad_token_id == 0
    assert call(eos_token_id=torch.tensor(4)).settings.eos_token_ids == (4,)


@pytest.mark.parametrize("value", [1, 0, np.True_, np.False_, torch.tensor(True), torch.tensor(False), np.int64(1)],
                         ids=repr)
@pytest.mark.parametrize("name", [k.name for k in KNOBS.values() if k.state == "done" and k.default in (True, False)
                                  and isinstance(k.default, bool) and k.name not in ("early_stopping", "token_healing")]
                         + ["output_logits", "output_hidden_states"])
def test_flags_take_what_equals_a_bool(theirs, name, value):
    result = theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, **{name: value})
    settings = call(max_new_tokens=2, **{name: value}).settings
    assert getattr(settings, name) is bool(value)
    if name == "return_dict_in_generate":
        assert isinstance(result, torch.Tensor) != settings.return_dict_in_generate
    if name == "use_cache":
        call(**{name: value}, output_attentions=np.False_, is_assistant=0, use_mtp=torch.tensor(False))


def test_early_stopping_takes_what_equals_a_bool(theirs):
    for value in (True, False, "never", 1, 0, np.True_, np.False_):
        theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, num_beams=2, early_stopping=value)
        found = call(max_new_tokens=2, num_beams=2, early_stopping=value).settings.early_stopping
        assert found == value and isinstance(found, (bool, str))


@pytest.mark.parametrize("knobs, plain", [
    ({"eos_token_id": -1, "pad_token_id": 0}, {"pad_token_id": 0}), ({"eos_token_id": -7}, {}),
    ({"eos_token_id": [EOS, -1], "pad_token_id": 0}, {"eos_token_id": EOS, "pad_token_id": 0}),
    ({"eos_token_id": torch.tensor([-1])}, {}), ({"eos_token_id": [], "pad_token_id": 0}, {"pad_token_id": 0}),
    ({"eos_token_id": EOS, "pad_token_id": -1}, {"eos_token_id": EOS}), ({"pad_token_id": -100}, {}),
    ({"bos_token_id": -1}, {}),
    ({"min_length": -1, "eos_token_id": EOS}, {"eos_token_id": EOS}),
    ({"min_new_tokens": -5, "min_length": 9, "eos_token_id": EOS}, {"min_new_tokens": 0, "eos_token_id": EOS}),
    ({"min_new_tokens": -1, "eos_token_id": EOS}, {"min_new_tokens": 0, "eos_token_id": EOS}),
    ({"no_repeat_ngram_size": -1}, {}), ({"no_repeat_ngram_size": np.int64(-5)}, {}),
    ({"max_new_tokens": 5.0}, {"max_new_tokens": 5}), ({"max_new_tokens": np.float64(5)}, {"max_new_tokens": 5}),
    ({"max_new_tokens": torch.tensor(5.0)}, {"max_new_tokens": 5}), ({"max_length": 12.0}, {"max_length": 12}),
    ({"exponential_decay_length_penalty": [1.0, torch.tensor(2.0)], "eos_token_id": EOS},
     {"exponential_decay_length_penalty": (1, 2.0), "eos_token_id": EOS}),
    ({"max_time": torch.tensor(50.0)}, {"max_time": 50.0}),
    ({"num_beams": 2, "length_penalty": torch.tensor(1.5)}, {"num_beams": 2, "length_penalty": 1.5}),
    *(({**SAMPLING, name: torch.tensor(0.5)}, {**SAMPLING, name: 0.5})
      for name in ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")),
    ({"num_assistant_tokens": 2.0}, {"num_assistant_tokens": 2}),
    ({"assistant_confidence_threshold": 1.5}, {"assistant_confidence_threshold": 1.0}),
    ({"assistant_confidence_threshold": -1}, {"assistant_confidence_threshold": 0.0}),
], ids=str)
def test_sentinels_and_numbers_mean_what_they_do_in_transformers(theirs, knobs, plain):
    length = {} if {"max_length", "max_new_tokens"} & knobs.keys() else {"max_new_tokens": 6}

    def tokens(values):
        torch.manual_seed(3)
        return theirs.generate(torch.tensor([[5, 6, 7]]), **length, **values).tolist()

    assert tokens(knobs) == tokens(plain)
    assert call(**length, **knobs).settings == call(**length, **plain).settings


def test_tensors_are_taken_where_transformers_wants_a_float():
    settings = call(temperature=torch.tensor(0.5), repetition_penalty=torch.tensor(2.0, dtype=torch.bfloat16),
                    top_p=np.array(0.5), do_sample=True).settings
    assert (settings.temperature, settings.repetition_penalty, settings.top_p) == (0.5, 2.0, 0.5)


def test_a_stored_sentinel_means_not_set(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"pad_token_id": -1, "eos_token_id": [4, -1]}))
    stored = GenerationConfig.from_folder(tmp_path, {})
    assert call(stored=stored).settings.pad_token_id == 4 and not call(stored=stored).settings.pad_is_set
    assert call(stored=stored).settings.eos_token_ids == (4,)
    assert call(stored=GenerationConfig(pad_token_id=0), pad_token_id=-1, eos_token_id=4).settings.pad_token_id == 4


def test_knobs_of_assistants_without_one(theirs):
    knobs = {"num_assistant_tokens": 0, "assistant_confidence_threshold": 2, "assistant_lookbehind": 3,
             "target_lookbehind": 3, "assistant_ensemble_weight": 0.5, "max_new_tokens": 2}
    theirs.generate(torch.tensor([[5, 6, 7]]), transformers.GenerationConfig(**knobs))
    assert call(generation_config=knobs).steps == call(stored=GenerationConfig(**knobs)).steps == 2
    assert call(num_assistant_tokens=0, max_new_tokens=2).warnings == []


def test_arguments_of_the_forward_pass(theirs):
    for knobs in (dict.fromkeys(("labels", "cache_position", "inputs_embeds", "token_type_ids")),
                  {"logits_to_keep": 1}):
        theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, **knobs)
        assert call(max_new_tokens=2, **knobs).warnings == call(max_new_tokens=2).warnings
    call(return_dict=None)


def test_edges_that_are_allowed():
    settings = call(do_sample=True, temperature=1, top_k=0, top_p=1).settings
    assert (settings.temperature, settings.top_k, settings.top_p) == (1.0, 0, 1.0)
    settings = call(do_sample=True, top_k=None, top_p=None, temperature=None).settings
    assert (settings.temperature, settings.top_k, settings.top_p) == (1.0, 0, 1.0)
    assert call(do_sample=True, top_p=0.0, top_k=10**6).settings.top_p == 0.0
    assert call(seed=2**64 - 1, do_sample=True).seeds[0] == 2**64 - 1
