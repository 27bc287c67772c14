"""Checkpoints: from a folder or the Hub into packed weights, and back into a folder."""

from .checkpoint import StateDictSource, TensorSource, checkpoint_dtype, open_checkpoint
from .convert import convert_weights
from .decoder_weights import DecoderWeights, LayerWeights
from .hub import CONFIG_PATTERNS, resolve
from .loader import load_weights
from .saver import save_checkpoint

__all__ = [
    "CONFIG_PATTERNS", "DecoderWeights", "LayerWeights", "StateDictSource", "TensorSource", "checkpoint_dtype",
    "convert_weights", "load_weights", "open_checkpoint", "resolve", "save_checkpoint",
]
