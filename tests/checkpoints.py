"""Random checkpoints for tests, made by transformers' own classes, in every layout that the Hub holds.

Weights are scaled so that attention is sharp and every part has a say in the next token: a model whose rotary
embedding, biases, norms or heads are wrong does not give the same tokens.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CodeGenConfig, CodeGenForCausalLM, GPTJConfig, GPTJForCausalLM

LAYOUTS = ("safetensors", "sharded", "bin", "sharded_bin")
_CLASSES = {"codegen": (CodeGenConfig, CodeGenForCausalLM), "gptj": (GPTJConfig, GPTJForCausalLM)}
_SMALL = {"vocab_size": 101, "n_positions": 64, "n_ctx": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8,
          "bos_token_id": 1, "eos_token_id": 2}


def make_model(*, model_type: str = "codegen", dtype: torch.dtype = torch.float32, seed: int = 0,
               **config) -> torch.nn.Module:
    """A transformers model, random by `seed`, in `dtype`, in eval mode. config: what differs from a small one."""
    config_class, model_class = _CLASSES[model_type]
    model = model_class(config_class(**{**_SMALL, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, parameter.shape, generator))
    return model.to(dtype).eval()


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if "ln_" in name:
        return 0.3 * noise + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith("bias"):
        return noise if name.startswith("lm_head") else 0.5 * noise
    if "wte" in name:
        return noise
    # With normalised inputs the scores q.k / sqrt(D) then deviate by 3, other products by 1 and the logits by 3.
    gain = {"qkv_proj": 3**0.5, "q_proj": 3**0.5, "k_proj": 3**0.5, "fc_in": 2.0, "lm_head": 3.0}
    return noise * gain.get(name.split(".")[-2], 1.0) / math.sqrt(shape[1])


def make_checkpoint(folder: Path, *, layout: str = "safetensors", old_buffers: bool = False,
                    **model_options) -> torch.nn.Module:
    """Writes make_model(**model_options) into the folder and returns it.

    layout: one of LAYOUTS; "sharded" makes three files. old_buffers: with the masks that old versions saved.
    """
    model = make_model(**model_options)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if old_buffers:
        for index in range(model.config.n_layer):
            prefix = f"transformer.h.{index}.attn"
            tensors[f"{prefix}.causal_mask"] = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
            tensors[f"{prefix}.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8).tril()
            tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    write_tensors(folder, tensors, layout)
    return model


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor], layout: str = "safetensors") -> None:
    """Writes the weights' files of a checkpoint, in one of LAYOUTS."""
    stem, suffix = ("model", "safetensors") if layout in ("safetensors", "sharded") else ("pytorch_model", "bin")
    if layout in ("safetensors", "bin"):
        _write_file(folder / f"{stem}.{suffix}", tensors)
        return
    files = {name: f"{stem}-{1 + 3 * i // len(tensors):05}-of-00003.{suffix}" for i, name in enumerate(tensors)}
    for file in sorted(set(files.values())):
        _write_file(folder / file, {name: tensor for name, tensor in tensors.items() if files[name] == file})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": files}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _write_file(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})
