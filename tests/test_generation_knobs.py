"""The knobs of generate: each of transformers' is classified, checked, and takes its value from the right place."""
from __future__ import annotations

import contextlib
import inspect
import json
import math

import numpy as np
import pytest
import torch
import transformers
from transformers.generation import GenerationMixin

from codegen_fast.generation import GenerationConfig, prepare
from codegen_fast.generation.config import as_generation_config, resolve
from codegen_fast.generation.knobs import ARGUMENTS, KNOBS
from codegen_fast.sampling import mix_seed

THEIR_FIELDS = sorted(name for name in vars(transformers.GenerationConfig())
                      if not name.startswith("_") and name != "transformers_version")
VALUES = [True, 3, 0.37, "text", [[5]]]  # of each kind, for knobs that are not done


@contextlib.contextmanager
def fails(kind: type[Exception], *words: str):
    """The block raises exactly `kind`, with every word in a message of at most three sentences."""
    with pytest.raises(kind) as caught:
        yield
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


# ---- Which knobs there are -----------------------------------------------------------------------


def test_every_field_of_transformers_is_classified():
    assert not [name for name in THEIR_FIELDS if name not in KNOBS]
    assert all(knob.state in ("done", "hint", "later", "never") for knob in (*KNOBS.values(), *ARGUMENTS.values()))
    assert all(knob.check is not None for knob in KNOBS.values() if knob.state == "done")
    assert all(knob.instead for knob in (*KNOBS.values(), *ARGUMENTS.values()) if knob.state == "never")


def test_defaults_are_those_of_transformers():
    theirs = transformers.GenerationConfig._get_default_generation_params()
    assert {name: KNOBS[name].default for name in theirs} == theirs


def test_every_argument_of_transformers_generate_is_classified():
    theirs = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert theirs <= set(ARGUMENTS)


@pytest.mark.parametrize("name", [k.name for k in KNOBS.values() if k.state in ("later", "never")])
def test_knobs_that_are_not_done_are_refused_by_name(name):
    call(**{name: None})
    call(**{name: KNOBS[name].default})
    for value in VALUES:
        if value != KNOBS[name].default:
            with fails(NotImplementedError, f"{name}=", "codegen_fast"):
                call(**{name: value})
    if name != "use_cache":
        with fails(NotImplementedError, f"{name}=", "generation_config"):
            call(stored=GenerationConfig(**{name: VALUES[2]}))


@pytest.mark.parametrize("name", [k.name for k in ARGUMENTS.values() if k.state in ("later", "never")])
def test_arguments_that_are_not_done_are_refused_by_name(name):
    call(**{name: None})
    call(**{name: ARGUMENTS[name].default})
    with fails(NotImplementedError, f"{name}="):
        call(**{name: object()})


@pytest.mark.parametrize("name", [k.name for k in (*KNOBS.values(), *ARGUMENTS.values()) if k.state == "hint"])
def test_hints_are_accepted(name):
    assert call(**{name: "anything"}).steps == 20


def test_empty_lists_of_callbacks_are_accepted():
    call(stopping_criteria=transformers.StoppingCriteriaList(), logits_processor=[])
    with fails(NotImplementedError, "stopping_criteria="):
        call(stopping_criteria=[lambda ids, scores: False])


@pytest.mark.parametrize("wrong, right", [("max_new_token", "max_new_tokens"), ("temprature", "temperature"),
                                          ("topk", "top_k"), ("seeds", "seed"), ("attn_mask", "attention_mask"),
                                          ("num_return_sequence", "num_return_sequences")])
def test_an_unknown_knob_names_its_nearest(wrong, right):
    with fails(TypeError, repr(wrong), repr(right)):
        call(**{wrong: 1})


def test_an_unknown_knob_with_no_near_one():
    with fails(TypeError, "'zzzzzz'"):
        call(zzzzzz=1)


# ---- Values out of range -------------------------------------------------------------------------

SAMPLING = {"do_sample": True}


@pytest.mark.parametrize("knobs, words", [
    ({"max_new_tokens": 0}, ["max_new_tokens=0", "1 or more"]),
    ({"max_new_tokens": -3}, ["max_new_tokens=-3"]),
    ({"max_new_tokens": 2.5}, ["max_new_tokens=2.5", "int"]),
    ({"max_new_tokens": True}, ["max_new_tokens=True"]),
    ({"max_new_tokens": "7"}, ["max_new_tokens='7'"]),
    ({"max_length": 0}, ["max_length=0"]),
    ({"max_length": math.nan}, ["max_length=nan"]),
    ({"do_sample": 1}, ["do_sample=1", "True or False"]),
    ({"do_sample": "yes"}, ["do_sample='yes'"]),
    ({**SAMPLING, "temperature": 0}, ["temperature=0", "do_sample=False"]),
    ({**SAMPLING, "temperature": 0.0}, ["temperature=0", "do_sample=False"]),
    ({**SAMPLING, "temperature": -0.5}, ["temperature=-0.5", "above 0"]),
    ({**SAMPLING, "temperature": math.nan}, ["temperature=nan"]),
    ({**SAMPLING, "temperature": math.inf}, ["temperature=inf"]),
    ({**SAMPLING, "temperature": "hot"}, ["temperature='hot'"]),
    ({**SAMPLING, "temperature": True}, ["temperature=True"]),
    ({**SAMPLING, "top_k": -1}, ["top_k=-1", "0 or None"]),
    ({**SAMPLING, "top_k": 1.5}, ["top_k=1.5"]),
    ({**SAMPLING, "top_k": True}, ["top_k=True"]),
    ({**SAMPLING, "top_p": 1.5}, ["top_p=1.5", "0 to 1"]),
    ({**SAMPLING, "top_p": -0.1}, ["top_p=-0.1"]),
    ({**SAMPLING, "top_p": math.nan}, ["top_p=nan"]),
    ({**SAMPLING, "num_return_sequences": 0}, ["num_return_sequences=0"]),
    ({**SAMPLING, "num_return_sequences": 2.0}, ["num_return_sequences=2.0"]),
    ({"num_return_sequences": 2}, ["num_return_sequences=2", "do_sample=True"]),
    ({"eos_token_id": -1}, ["eos_token_id=-1", "None"]),
    ({"eos_token_id": [2, -1]}, ["eos_token_id=[2, -1]"]),
    ({"eos_token_id": []}, ["eos_token_id=[]"]),
    ({"eos_token_id": "2"}, ["eos_token_id='2'"]),
    ({"eos_token_id": 2.0}, ["eos_token_id=2.0"]),
    ({"eos_token_id": [True]}, ["eos_token_id=[True]"]),
    ({"pad_token_id": -100}, ["pad_token_id=-100"]),
    ({"pad_token_id": [0]}, ["pad_token_id=[0]"]),
    ({"bos_token_id": 1.0}, ["bos_token_id=1.0"]),
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
])
def test_values_out_of_range(knobs, words):
    with fails(ValueError, *words):
        call(**knobs)


@pytest.mark.parametrize("knobs", [
    {"max_new_tokens": 0}, {**SAMPLING, "temperature": 0.0}, {**SAMPLING, "temperature": -1.0},
    {**SAMPLING, "top_k": -1}, {**SAMPLING, "top_p": -0.5}, {"num_return_sequences": 2}, {"max_length": 2},
    {"zzzzzz": 1}, {"seed": 3},
])
def test_transformers_refuses_these_too(knobs):
    """Where it raises, so do we. (seed is ours: there it is the unknown one.)"""
    config = transformers.CodeGenConfig(vocab_size=20, n_positions=32, n_ctx=32, n_embd=16, n_layer=1, n_head=4,
                                        rotary_dim=4)
    with pytest.raises(ValueError):
        transformers.CodeGenForCausalLM(config).generate(torch.tensor([[5, 6, 7]]), **knobs)


def test_numbers_of_numpy_and_torch_are_numbers():
    request = call(max_new_tokens=np.int64(5), top_k=torch.tensor(7), temperature=np.float32(0.5), do_sample=True,
                   top_p=np.float64(0.5), seed=np.int64(3), eos_token_id=np.array([4, 2]), pad_token_id=np.int32(0))
    settings = request.settings
    assert (request.steps, settings.top_k, settings.temperature, settings.top_p) == (5, 7, 0.5, 0.5)
    assert settings.eos_token_ids == (4, 2) and settings.pad_token_id == 0
    assert call(eos_token_id=torch.tensor(4)).settings.eos_token_ids == (4,)


def test_edges_that_are_allowed():
    settings = call(do_sample=True, temperature=1, top_k=0, top_p=1).settings
    assert (settings.temperature, settings.top_k, settings.top_p) == (1.0, 0, 1.0)
    settings = call(do_sample=True, top_k=None, top_p=None, temperature=None).settings
    assert (settings.temperature, settings.top_k, settings.top_p) == (1.0, 0, 1.0)
    assert call(do_sample=True, top_p=0.0, top_k=10**6).settings.top_p == 0.0
    assert call(seed=2**64 - 1, do_sample=True).seeds[0] == 2**64 - 1


# ---- Where a value comes from --------------------------------------------------------------------


def settings_of(call_knobs, given=None, stored=None):
    return resolve(call_knobs, GenerationConfig(**(given or {})), GenerationConfig(**(stored or {})))[0]


def test_precedence_is_call_then_given_then_stored_then_default():
    stored = {"top_k": 3, "top_p": 0.3, "temperature": 0.3, "do_sample": True}
    given = {"top_k": 2, "top_p": 0.2}
    settings = settings_of({"top_k": 1}, given, stored)
    assert (settings.top_k, settings.top_p, settings.temperature) == (1, 0.2, 0.3)
    assert settings_of({"do_sample": True}).top_k == 50


def test_none_in_the_call_unsets_and_none_in_a_config_does_not():
    stored = {"eos_token_id": 2, "do_sample": True, "top_k": 5}
    assert settings_of({"eos_token_id": None}, None, stored).eos_token_ids == ()
    assert settings_of({}, {"eos_token_id": None}, stored).eos_token_ids == (2,)
    assert settings_of({"top_k": None}, None, stored).top_k == 0
    assert settings_of({}, {"top_k": None}, stored).top_k == 5


def test_pad_falls_back_to_the_first_eos():
    assert settings_of({"eos_token_id": [7, 3]}).pad_token_id == 7
    assert settings_of({"eos_token_id": 7, "pad_token_id": 0}).pad_token_id == 0
    assert settings_of({}).pad_token_id is None


@pytest.mark.parametrize("config", [
    GenerationConfig(max_new_tokens=4, eos_token_id=9),
    {"max_new_tokens": 4, "eos_token_id": 9, "top_k": None},
    transformers.GenerationConfig(max_new_tokens=4, eos_token_id=9),
])
def test_a_generation_config_of_any_kind(config):
    request = call(generation_config=config)
    assert request.steps == 4 and request.settings.eos_token_ids == (9,)
    assert call(stored=as_generation_config(config)).steps == 4
    assert call(generation_config=config, max_new_tokens=6).steps == 6


@pytest.mark.parametrize("config, kind, words", [
    ({"max_new_token": 4}, TypeError, ["'max_new_token'", "'max_new_tokens'"]),
    ({"streamer": 4}, TypeError, ["'streamer'", "argument of generate()"]),
    ("folder", TypeError, ["'folder'", "not a path"]),
    (7, TypeError, ["int"]),
    ({"num_beams": 4}, NotImplementedError, ["num_beams=4", "sampling"]),
    ({"top_p": 3.0, "do_sample": True}, ValueError, ["top_p=3.0"]),
    (transformers.GenerationConfig(num_beams=2), NotImplementedError, ["num_beams=2"]),
    (transformers.GenerationConfig(max_new_token=4), TypeError, ["'max_new_token'", "'max_new_tokens'"]),
])
def test_a_bad_generation_config(config, kind, words):
    with fails(kind, *words):
        call(generation_config=config)


def test_our_generation_config_knows_its_names():
    config = GenerationConfig(top_k=4)
    config.max_new_tokens = 8
    assert repr(config) == "GenerationConfig(max_new_tokens=8, top_k=4)"
    assert config == GenerationConfig(max_new_tokens=8, top_k=4) and config != GenerationConfig()
    with fails(AttributeError, "'max_new_token'", "'max_new_tokens'"):
        config.max_new_token = 8
    with fails(TypeError, "'topk'", "'top_k'"):
        GenerationConfig(topk=4)


def test_the_checkpoints_file(tmp_path):
    values = {"_from_model_config": True, "eos_token_id": 5, "pad_token_id": 0, "transformers_version": "4.30.0",
              "new_idea": 3, "use_cache": False}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    config = GenerationConfig.from_folder(tmp_path, {"eos_token_id": 9})
    assert config.eos_token_id == 5 and config.to_dict() == values
    settings = call(stored=config).settings  # a stored use_cache=false says nothing about generation
    assert settings.eos_token_ids == (5,) and settings.pad_token_id == 0


@pytest.mark.parametrize("text", ["{", "[1]", "\x80"])
def test_a_broken_file(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text, encoding="latin-1")
    with fails(ValueError, "generation_config.json", "JSON" if text != "\x80" else "UTF-8"):
        GenerationConfig.from_folder(tmp_path, {})


def test_without_a_file_the_models_config_serves(tmp_path):
    model_config = {"eos_token_id": 9, "n_layer": 3, "do_sample": True, "max_length": 30, "pad_token_id": None,
                    "output_hidden_states": True}
    config = GenerationConfig.from_folder(tmp_path, model_config)
    assert config.set_knobs() == {"eos_token_id": 9, "do_sample": True, "max_length": 30}


# ---- Lengths -------------------------------------------------------------------------------------


def test_lengths():
    assert call().steps == 20
    assert call(max_length=10).steps == 7
    assert call(max_new_tokens=10).steps == 10
    assert call(max_new_tokens=10, max_length=5).steps == 10
    assert call(stored=GenerationConfig(max_length=12)).steps == 9
    assert call(max_length=None, stored=GenerationConfig(max_length=12)).steps == 20
    assert call(max_length=10, stored=GenerationConfig(max_new_tokens=4)).steps == 4  # as transformers has it
    assert call(max_new_tokens=61).steps == 61
    assert call(input_ids=[[1] * 60]).steps == 4  # the default stops at the context's end


@pytest.mark.parametrize("ids, knobs, words", [
    ([[1] * 5], {"max_length": 5}, ["max_length=5", "5 tokens", "max_new_tokens"]),
    ([[1] * 5], {"max_new_tokens": 60}, ["max_new_tokens=60", "5 tokens", "65", "64", "at most 59"]),
    ([[1] * 5], {"max_length": 65}, ["max_length=65", "65", "64"]),
    ([[1] * 64], {}, ["64 tokens", "no room"]),
    ([[1] * 100], {"max_new_tokens": 1}, ["100 tokens", "64 tokens"]),
])
def test_lengths_that_cannot_be(ids, knobs, words):
    with fails(ValueError, *words):
        call(input_ids=ids, **knobs)


def test_only_tokens_count_towards_the_context():
    ids, mask = [[0] * 30 + [1] * 40], [[0] * 30 + [1] * 40]
    assert call(input_ids=ids, attention_mask=mask, max_new_tokens=24).steps == 24


# ---- Warnings ------------------------------------------------------------------------------------


def warned(**knobs):
    return " / ".join(call(attention_mask=torch.ones(2, 3), **knobs).warnings)


def test_warnings_of_transformers():
    quiet = {"max_new_tokens": 3}
    assert warned(**quiet) == ""
    assert "20 new tokens" in warned()
    assert "max_new_tokens=3" in warned(**quiet, max_length=9) and "max_length=9" in warned(**quiet, max_length=9)
    assert "temperature=0.7" in warned(**quiet, temperature=0.7)
    assert "top_k=5, top_p=0.5" in warned(**quiet, do_sample=False, top_k=5, top_p=0.5)
    assert warned(**quiet, do_sample=True, temperature=0.7) == ""
    stored = GenerationConfig(temperature=0.7)
    assert "temperature=0.7" in warned(**quiet, stored=stored)
    assert warned(**quiet, stored=stored, do_sample=False) == ""
    batch = " / ".join(call(max_new_tokens=3, eos_token_id=2).warnings)
    assert "attention_mask" in batch
    assert call(max_new_tokens=3, eos_token_id=2, pad_token_id=0).warnings == []
    assert call(max_new_tokens=3, eos_token_id=2, input_ids=[[4, 5]]).warnings == []


def test_greedy_ignores_the_temperature():
    assert call(temperature=0.0).settings.temperature == 0.0
    assert call(temperature=0.7).settings.temperature == 0.0


# ---- Seeds ---------------------------------------------------------------------------------------


def test_an_int_seed_gives_each_prompt_its_own():
    request = call(seed=11, do_sample=True, num_return_sequences=3)
    assert request.seeds == [11] * 3 + [mix_seed(11, 1)] * 3
    assert request.sample_indices == [0, 1, 2] * 2
    assert request.input_ids.tolist() == [[5, 6, 7]] * 3 + [[8, 9, 10]] * 3


def test_seeds_by_prompt_and_an_offset():
    request = call(seed=[4, np.int64(5)], do_sample=True, num_return_sequences=2, sample_offset=7)
    assert request.seeds == [4, 4, 5, 5] and request.sample_indices == [7, 8, 7, 8]
    assert call(seed=torch.tensor([4, 5]), do_sample=True).seeds == [4, 5]
    assert call(seed=torch.tensor(4), do_sample=True).seeds == call(seed=4, do_sample=True).seeds


def test_no_seed_draws_from_torch():
    torch.manual_seed(5)
    first, second = call(do_sample=True).seeds, call(do_sample=True).seeds
    torch.manual_seed(5)
    assert call(do_sample=True).seeds == first != second
    state = torch.get_rng_state()
    call()
    assert torch.equal(torch.get_rng_state(), state)  # greedy decoding draws nothing
