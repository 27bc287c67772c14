"""Weights that are no numbers: in a file, and in a model that is loaded already."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from codegen_fast import AutoModelForCausalLM
from codegen_fast.demo import demo_model_path

from .subject import Subject, require_error

_VALUES = (math.nan, math.inf, -math.inf)
_IN_FILES = ("transformer.wte.weight", "transformer.h.1.ln_1.bias", "transformer.h.2.attn.qkv_proj.weight",
             "transformer.h.3.mlp.fc_out.weight", "lm_head.weight", "lm_head.bias")  # fmt: skip
_REFUSED = "NaN or no finite value, so no token can be chosen|gets NaN or infinity, so no token can be chosen"


def in_files(subject: Subject, times: int) -> str:
    """One value of a checkpoint is NaN or infinite: embedding, norm, products, biases; loaded as it is and as int8."""
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(demo_model_path() / "config.json", folder)
        tensors = load_file(demo_model_path() / "model.safetensors")
        for i in range(times):
            name, value = _IN_FILES[i % len(_IN_FILES)], _VALUES[i // len(_IN_FILES) % len(_VALUES)]
            spoiled = tensors[name].clone()
            spoiled.view(-1)[(7919 * i) % spoiled.numel()] = value
            save_file({**tensors, name: spoiled}, Path(folder) / "model.safetensors")
            require_error(lambda: AutoModelForCausalLM.from_pretrained(folder, quantization=("int8", None)[i % 2]), ValueError,
                          f"tensor '{name}' of .* holds 1 values that are NaN or infinite; the checkpoint is broken")  # fmt: skip
            refused += 1
    subject.require_usable()
    return f"ValueError that names the tensor, {refused} times"


def in_memory(subject: Subject, times: int) -> str:
    """A weight of a loaded model becomes NaN or infinite (as when float16 overflows), and is mended again."""
    model, ids = subject.model, [subject.ids]
    weights = model._decoder.weights
    places = (weights.layers[1].bias_in, weights.final_norm.weight, weights.lm_head_bias, weights.layers[0].norm.bias)
    calls = {
        "greedy": lambda: model.generate(ids, max_new_tokens=5),
        "samples": lambda: model.generate(ids, max_new_tokens=5, do_sample=True, top_p=0.9, seed=1, num_return_sequences=3),
        "beams": lambda: model.generate(ids, max_new_tokens=5, num_beams=3),
        "drafts": lambda: model.generate([subject.ids * 2], max_new_tokens=5, prompt_lookup_num_tokens=4),
        "stream": lambda: list(model.stream(ids, max_new_tokens=5)),
    }
    for i in range(times):
        place, value = places[i % len(places)], _VALUES[i % 2]
        before, place[3] = float(place[3]), value
        try:
            require_error(list(calls.values())[i // len(places) % len(calls)], ValueError, _REFUSED)
            if math.isnan(value):
                score = model.score(subject.ids, subject.ids[:4])
                assert math.isnan(score.sum), "a score of a model with NaN is a number"
                assert bool(torch.isnan(model(torch.tensor(ids)).logits).any()), "logits of a model with NaN are numbers"
        finally:
            place[3] = before
        subject.require_returned()
    subject.require_usable()
    return "generation: ValueError that says what may be the cause; scores and logits: NaN, as in transformers"
