"""The arguments of from_pretrained: types, devices, and what transformers also takes."""
from __future__ import annotations

import warnings
from typing import Any

import torch

from . import ops
from .config import CodeGenConfig
from .generation.knobs import nearest
from .memory import check_fits

DTYPES = {"float32": torch.float32, "float": torch.float32, "float16": torch.float16, "half": torch.float16,
          "bfloat16": torch.bfloat16}

# Taken as transformers takes them, without effect here: there is one way to load, and one attention.
_NO_EFFECT = ("low_cpu_mem_usage", "trust_remote_code", "attn_implementation", "offload_folder",
              "offload_state_dict", "use_auth_token", "resume_download", "weights_only")
_REFUSED = {
    "load_in_8bit": "use quantization='int8'",
    "load_in_4bit": "use quantization='int4'",
    "quantization_config": "use quantization='int8' or 'int4'",
    "max_memory": "the model lies on one device; choose it with device=",
    "config": "the checkpoint's own config.json is used",
    "state_dict": "use codegen_fast.accelerate(hf_model) for weights in memory",
    "subfolder": "download the repository and pass the folder's path",
    "variant": "download the repository and pass the folder's path",
    "force_download": "delete the repository from the Hub's cache",
    "proxies": "set HTTPS_PROXY in the environment",
    "output_loading_info": "every tensor is read or an error names it, so there is nothing to tell",
    "gguf_file": "only safetensors and .bin checkpoints are read",
    "tp_plan": "the model lies on one device; choose it with device=",
}
_OWN = ("dtype", "torch_dtype", "device", "device_map", "quantization", "revision", "cache_dir", "token",
        "local_files_only")


def require_known_arguments(others: dict[str, Any]) -> None:
    """TypeError for arguments that neither we nor transformers have, NotImplementedError for what only it does."""
    for name, value in others.items():
        if name == "use_safetensors":
            if value is False:
                raise NotImplementedError("from_pretrained(use_safetensors=False) is not supported in codegen_fast: "
                                          "safetensors are read where there are any, else .bin files")
        elif name in _REFUSED:
            if value is not None and value is not False:
                raise NotImplementedError(f"from_pretrained({name}=...) is not supported in codegen_fast: "
                                          f"{_REFUSED[name]}")
        elif name not in _NO_EFFECT:
            known = [*_OWN, *_NO_EFFECT, *_REFUSED, "use_safetensors"]
            raise TypeError(f"from_pretrained() got an unknown argument {name!r}{nearest(name, known)}")


def choose_token(token: str | bool | None, use_auth_token: str | bool | None) -> str | bool | None:
    """token, or its old name use_auth_token."""
    if token is not None and use_auth_token is not None and token != use_auth_token:
        raise ValueError("token and use_auth_token differ: pass one of them")
    return token if token is not None else use_auth_token


def parse_size(value: int | str, name: str) -> int:
    """Bytes, from an int or a text like "500MB" or "5GB" (powers of ten)."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    text = str(value).strip().upper().replace(" ", "")
    number, unit = (text[:-2], units[text[-2:]]) if text[-2:] in units else (text, 1)
    if isinstance(value, bool) or not number.isdecimal() or int(number) == 0:
        raise ValueError(f"{name}={value!r} is not allowed: expected a number of bytes, or a text like '5GB'")
    return int(number) * unit


def parse_dtype(dtype: Any, name: str = "dtype") -> torch.dtype | None:
    """torch.float32, float16 or bfloat16, from itself or its name; None for "auto" (the checkpoint's own)."""
    if dtype is None or dtype == "auto":
        return None
    parsed = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if parsed not in DTYPES.values():
        raise ValueError(f"{name}={dtype!r} is not allowed: expected 'auto', torch.float32, torch.float16 or "
                         "torch.bfloat16")
    return parsed


def choose_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """dtype, or its old name torch_dtype; ValueError where the two differ."""
    new, old = parse_dtype(dtype), parse_dtype(torch_dtype, "torch_dtype")
    if new is not None and old is not None and new != old:
        raise ValueError(f"dtype={dtype!r} and torch_dtype={torch_dtype!r} differ: pass one of them")
    return new if new is not None else old


def choose_device(device: Any, device_map: Any) -> torch.device:
    """The one device that device= and device_map= name; where they leave it open, a GPU that can be used, else the CPU.

    UserWarning where a GPU is there that cannot be used.
    """
    mapped = _from_device_map(device_map)
    chosen = None if device is None or device == "auto" else parse_device(device)
    if mapped is not None and chosen is not None and mapped != chosen:
        raise ValueError(f"device={device!r} and device_map={device_map!r} differ: pass one of them")
    return chosen or mapped or _best_device()


def _best_device() -> torch.device:
    found, why_none = ops.cuda_devices()
    # A GPU shows in torch too, or by CUDA's word that its driver "is insufficient".
    if not found and not torch.cuda.is_available() and "insufficient" not in why_none:
        return torch.device("cpu")
    index = _current_gpu()
    why = why_unusable(index)
    if why is None:
        return torch.device("cuda", index)
    name = f" ({found[index]['name']})" if index < len(found) else ""
    warnings.warn(f"the model runs on the CPU, because the GPU{name} cannot be used: {why}; device='cpu' says that "
                  "this is meant", UserWarning, stacklevel=4)
    return torch.device("cpu")


def _from_device_map(device_map: Any) -> torch.device | None:
    if device_map is None or (isinstance(device_map, str) and device_map in (
            "auto", "balanced", "balanced_low_0", "sequential")):
        return None
    if not isinstance(device_map, dict):
        return parse_device(device_map, "device_map")
    devices = {parse_device(device, "device_map") for device in device_map.values()}
    if len(devices) != 1:
        raise NotImplementedError(f"device_map={device_map!r} spreads the model over several devices, which "
                                  "codegen_fast does not do: use device_map={'': 'cuda:0'} or {'': 'cpu'}")
    return devices.pop()


def parse_device(device: Any, name: str = "device", instead: str = "use device='cpu'") -> torch.device:
    """A device that this build and machine can run on, a GPU with its number. ValueError for others.

    instead: what the caller may do where it cannot be used.
    """
    number = device if isinstance(device, int) and not isinstance(device, bool) else None
    try:
        parsed = torch.device("cuda", number) if number is not None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name}={device!r} is not a device: expected 'auto', 'cpu', 'cuda' or 'cuda:0'") from error
    if parsed.type == "cpu":
        return torch.device("cpu")
    if parsed.type != "cuda":
        raise ValueError(f"{name}={device!r} is not supported: expected 'auto', 'cpu', 'cuda' or 'cuda:0'")
    index = _current_gpu() if parsed.index is None else parsed.index
    why = why_unusable(index)
    if why is not None:
        raise ValueError(f"{name}={device!r} cannot be used: {why}; {instead}")
    return torch.device("cuda", index)


def _current_gpu() -> int:
    """torch's; 0 where torch has none."""
    return torch.cuda.current_device() if torch.cuda.is_available() else 0


def why_unusable(index: int) -> str | None:
    """One clause that says why the model cannot run on this GPU; None where it can."""
    found, why_none = ops.cuda_devices()
    if not found:
        return why_none
    if index >= len(found):
        have = "cuda:0" if len(found) == 1 else f"cuda:0 to cuda:{len(found) - 1}"
        return f"this machine has {have}"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA, install one with it"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU, its driver may be too old"
    return ops.why_unusable(index) or None


def choose_model_dtype(dtype: torch.dtype | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The model's type on a device: what was asked for, else the checkpoint's own.

    The CUDA kernels compute in half types: float32 that nobody asked for becomes float16, with a UserWarning.
    """
    if ops.backend(device) != "cuda":
        return dtype or stored
    if dtype == torch.float32:
        raise ValueError(f"dtype=torch.float32 is not supported on {device}: use dtype=torch.float16 or "
                         "torch.bfloat16, or device='cpu'")
    if dtype is None and stored == torch.float32:
        warnings.warn(f"the model is float32 and will run as float16 on {device}: pass dtype=torch.float16 (or "
                      "torch.bfloat16) if that is meant, or device='cpu' to keep float32", UserWarning, stacklevel=3)
        return torch.float16
    return dtype or stored


def require_memory(config: CodeGenConfig, dtype: torch.dtype | None, quantization: str | None, device: torch.device, *,
                   where: str) -> None:
    """OSError that says what would fit, if the model is larger than the free memory: by its config alone, so that nobody
    downloads it to read that. A config that names no type says nothing; the weights are asked when they are there.
    """
    known = dtype or config.dtype
    if known is None:
        return
    if ops.backend(device) == "cuda" and known == torch.float32:
        known = torch.float16  # choose_model_dtype
    check_fits(config, known, quantization or config.quantization, device=device, scratch=0, where=where)
