"""A checkpoint's tensors as the peers' formats want them: by layer, q, k and v put straight.

CodeGen was trained on 4 cores and stores qkv_proj as 4 blocks of rows, each [q | v | k].
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

BLOCKS = 4


@dataclass(frozen=True)
class Dims:
    """Dimensions of a model, by the names of its config.json."""

    n_layer: int
    n_head: int
    n_embd: int
    rotary_dim: int
    inner: int
    vocab: int
    n_positions: int
    eps: float

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head


class Source:
    """The tensors of a folder with safetensors, each read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        if config["model_type"] != "codegen":
            raise ValueError(f"{folder.name}: expected a model of type codegen, found {config['model_type']}")
        self.dims = Dims(
            config["n_layer"], config["n_head"], config["n_embd"], config["rotary_dim"],
            config.get("n_inner") or 4 * config["n_embd"], config["vocab_size"], config["n_positions"],
            config["layer_norm_epsilon"],
        )  # fmt: skip
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{folder.name}: no .safetensors file, which the peers' formats are made from")
        self._files = [safe_open(str(path), framework="pt") for path in paths]
        self._where = {name: file for file in self._files for name in file.keys()}

    def get(self, name: str) -> np.ndarray:
        """A tensor of transformer.* or lm_head.*, float32."""
        return self._where[name].get_tensor(name).to(torch.float32).numpy()

    def layer(self, index: int, name: str) -> np.ndarray:
        """ln_1.weight, attn.out_proj.weight, mlp.fc_in.bias ...; float32."""
        return self.get(f"transformer.h.{index}.{name}")

    def qkv(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """q, k and v, (d, d) float32 each, heads in order."""
        d = self.dims.n_embd
        blocks = self.layer(index, "attn.qkv_proj.weight").reshape(BLOCKS, 3, d // BLOCKS, d)
        q, v, k = (np.ascontiguousarray(blocks[:, place].reshape(d, d)) for place in range(3))
        return q, k, v
