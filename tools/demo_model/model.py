"""The CodeGen architecture as a lean torch training model, and its numbers.

The parameters are kept as training wants them (plain [q; k; v] rows); `export.py` writes the Hugging Face layout.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """Shape of the demo model; the names are those of DESIGN section 2."""
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 256
    rotary_dim: int = 32
    n_positions: int = 1024
    vocab_size: int = 3072
    layer_norm_epsilon: float = 1e-5


def rotary_tables(config):
    """(P, R/2) sines and cosines of position * 10000^(-2i/R)."""
    inverse = 10000.0 ** (-torch.arange(0, config.rotary_dim, 2) / config.rotary_dim)
    angle = torch.arange(config.n_positions)[:, None] * inverse
    return angle.sin(), angle.cos()


def rotate(x, sin, cos):
    """Turn the pairs (2i, 2i+1) of the first R dims of x (batch, seq, heads, D)."""
    r = 2 * sin.shape[-1]
    even, odd = x[..., 0:r:2], x[..., 1:r:2]
    sin, cos = sin[:, None, :], cos[:, None, :]  # one angle for all heads
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    return torch.cat((turned.type_as(x), x[..., r:]), -1)


class Block(nn.Module):
    """x + attention(LayerNorm(x)) + mlp(LayerNorm(x)), with one LayerNorm."""

    def __init__(self, config):
        super().__init__()
        d = config.n_embd
        self.n_head = config.n_head
        self.ln_1 = nn.LayerNorm(d, eps=config.layer_norm_epsilon)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.out = nn.Linear(d, d, bias=False)
        self.fc_in = nn.Linear(d, 4 * d)
        self.fc_out = nn.Linear(4 * d, d)

    def forward(self, x, sin, cos):
        batch, seq, d = x.shape
        h = self.ln_1(x)
        q, k, v = self.qkv(h).view(batch, seq, 3, self.n_head, d // self.n_head).unbind(2)
        q, k = rotate(q, sin, cos), rotate(k, sin, cos)
        a = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        a = self.out(a.transpose(1, 2).reshape(batch, seq, d))
        return x + a + self.fc_out(F.gelu(self.fc_in(h), approximate="tanh"))


class CodeGen(nn.Module):
    """ids (batch, seq) -> logits (batch, seq, vocab), or the mean loss when targets are given."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        d = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, d)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(d, eps=config.layer_norm_epsilon)
        self.lm_head = nn.Linear(d, config.vocab_size)
        sin, cos = rotary_tables(config)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("cos", cos, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # What writes into the residual stream starts at zero: the untrained block is the identity.
                zero = name.endswith("out.weight")
                std = {"wte.weight": 0.1, "lm_head.weight": 0.02}.get(name, d ** -0.5)
                nn.init.normal_(p, std=0.0 if zero else std)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids, targets=None):
        seq = ids.shape[1]
        x = self.wte(ids)
        for block in self.h:
            x = block(x, self.sin[:seq], self.cos[:seq])
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
