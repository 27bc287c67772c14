"""A fast model from one that transformers has loaded. Works on the object alone: transformers is not imported."""
from __future__ import annotations

from typing import Any

from .config import CodeGenConfig
from .decoder import Decoder
from .generation import GenerationConfig
from .loading import choose_model_dtype, parse_device, parse_dtype
from .memory import named_where_full
from .model import CodeGenForCausalLM
from .quantization import parse_quantization
from .weights import StateDictSource, load_weights

_CLASSES = ("CodeGenForCausalLM", "GPTJForCausalLM")


def accelerate(hf_model: Any, quantization: str | None = None) -> CodeGenForCausalLM:
    """A fast copy of a loaded transformers CodeGenForCausalLM or GPTJForCausalLM, on its device and in its dtype.

    A float32 model on a GPU becomes float16, with a UserWarning.

    The weights are copied: `hf_model` stays usable, and later changes of it are not seen. quantization: as of
    from_pretrained. Its generation_config is taken over.
    Raises TypeError for any other object, ValueError for weights that cannot be taken (NaN, another dtype).
    """
    quantization = parse_quantization(quantization)
    if isinstance(hf_model, CodeGenForCausalLM):
        raise TypeError("accelerate() got a model of codegen_fast, which is fast already")
    if not any(base.__name__ in _CLASSES for base in type(hf_model).__mro__):
        raise TypeError(f"accelerate() needs a loaded {' or '.join(_CLASSES)} of transformers, got "
                        f"{type(hf_model).__module__}.{type(hf_model).__name__}: for a folder or a Hub id use "
                        "AutoModelForCausalLM.from_pretrained; merge adapters first")
    if getattr(hf_model.config, "quantization_config", None) is not None or getattr(hf_model, "is_quantized", False):
        raise TypeError("accelerate() needs plain weights, and this model is quantised: load it without "
                        "quantization_config, then pass quantization='int8' here")
    config = CodeGenConfig.from_dict(hf_model.config.to_dict(), where="hf_model.config")
    device = parse_device(hf_model.device, "hf_model.device", "move the model first, with hf_model.cpu()")
    dtype = choose_model_dtype(None, parse_dtype(hf_model.dtype, "hf_model.dtype"), device)
    with named_where_full(device):
        weights = load_weights(config, StateDictSource(hf_model.state_dict(), "hf_model"), dtype=dtype,
                               quantization=quantization, device=device, progress=False)
    # from_dict: like a checkpoint's file, it may hold entries that are no knobs
    generation_config = GenerationConfig.from_dict(hf_model.generation_config.to_dict())
    return CodeGenForCausalLM(config, Decoder(config, weights, device), generation_config)
