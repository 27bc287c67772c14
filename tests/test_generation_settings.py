"""Where the value of a knob comes from, and what follows from the values: lengths, warnings, seeds."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from prepared import call, fails, theirs  # noqa: F401 (theirs: a fixture)

from codegen_fast.generation import GenerationConfig
from codegen_fast.generation.config import Settings, as_generation_config, resolve
from codegen_fast.generation.knobs import KNOBS
from codegen_fast.sampling import mix_seed


# ---- Where a value comes from --------------------------------------------------------------------


def settings_of(call_knobs, given=None, stored=None):
    return resolve(call_knobs, GenerationConfig(**(given or {})), GenerationConfig(**(stored or {})))[0]


def test_normal_forms():
    settings = settings_of({"bad_words_ids": [[7], [7, 8], [9], [9]], "eos_token_id": [7, 3], "stop_strings": "end",
                            "sequence_bias": [[[5, 6], 1.0], [[5], np.float32(2)], [[5, 6], -3]],
                            "forced_eos_token_id": np.int64(4), "suppress_tokens": torch.tensor([5, 6])})
    assert settings.bad_words_ids == ((7, 8), (9,))  # eos tokens are not banned, as in transformers
    assert settings.sequence_bias == (((5, 6), -3.0), ((5,), 2.0))
    assert settings.stop_strings == ("end",) and settings.forced_eos_token_ids == (4,)
    assert settings.suppress_tokens == (5, 6)


def test_none_leaves_every_knob_without_effect():
    assert settings_of({name: None for name, knob in KNOBS.items() if knob.state == "done"}) == Settings()
    assert settings_of({"top_k": 0}) == Settings()


def test_min_new_tokens_counts():
    assert settings_of({"min_length": 9}).min_length == 9
    settings = settings_of({"min_length": 9, "min_new_tokens": 0})
    assert (settings.min_length, settings.min_new_tokens) == (0, 0)


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
    ({"num_beam_groups": 4}, NotImplementedError, ["num_beam_groups=4", "sampling"]),
    ({"top_p": 3.0, "do_sample": True}, ValueError, ["top_p=3.0"]),
    (transformers.GenerationConfig(dola_layers="high"), NotImplementedError, ["dola_layers='high'"]),
])
def test_a_bad_generation_config(config, kind, words):
    with fails(kind, *words):
        call(generation_config=config)


def test_a_field_of_the_users_own_is_ignored_with_a_warning(theirs):
    config = transformers.GenerationConfig(max_new_tokens=4, my_idea=[1], max_new_token=5, seed=3, mine=None)
    theirs.generate(torch.tensor([[5, 6, 7]]), config)
    for knobs in ({"generation_config": config}, {"stored": config}, {"generation_config": config, "stored": config}):
        request = call(pad_token_id=0, **knobs)
        assert request.steps == 4 and len(request.warnings) == 1
        assert "'max_new_tokens'" in request.warnings[0]
        assert all(request.warnings[0].count(name) == 1 for name in ("my_idea", "max_new_token;", "seed"))
        assert "mine" not in request.warnings[0]
    assert as_generation_config(config).to_dict()["my_idea"] == [1]  # save_pretrained keeps it
    assert call(max_new_tokens=4, stored=GenerationConfig.from_dict({"my_idea": 1})).warnings == []  # a file's


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
    assert "min_p=0.1" in warned(**quiet, min_p=0.1) and "eta_cutoff=0.1" in warned(**quiet, eta_cutoff=0.1)
    assert "length_penalty=2.0" in warned(**quiet, length_penalty=2.0)
    assert "early_stopping=never" in warned(**quiet, early_stopping="never")
    assert warned(**quiet, num_beams=2, length_penalty=2.0, early_stopping=True) == ""
    assert "output_scores" in warned(**quiet, output_scores=True)
    assert warned(**quiet, output_scores=True, return_dict_in_generate=True) == ""
    assert "min_new_tokens=2" in warned(**quiet, min_new_tokens=2, min_length=5)
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
    assert call(do_sample=True, num_return_sequences=2, sample_offset=[7, 3]).sample_indices == [7, 8, 3, 4]
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
