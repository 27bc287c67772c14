"""past_key_values: a cache that a caller holds between calls (floor 7)."""
from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from .cache import PagedCache, Sequence
from .caller import outside
from .decoder import Decoder


class PastKeyValues:
    """The cache of a forward pass or a generation: give it back with the next tokens to continue. It grows in place;
    copy.deepcopy gives another continuation of the same tokens, which shares their memory.

    It belongs to the model that made it, and is freed with its last reference.
    """

    def __init__(self, decoder: Decoder, cache: PagedCache, sequences: list[Sequence], mask: Tensor):
        self.decoder = decoder
        self.cache = cache
        self.sequences = sequences  # one a row of the batch
        self.mask = mask            # (B, columns) bool, on the CPU: which columns hold tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, padding included, as transformers counts them."""
        return self.mask.shape[1]

    def __copy__(self) -> PastKeyValues:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict) -> PastKeyValues:
        """A second continuation of the same tokens: it shares their pages, so a copy costs next to nothing."""
        with self.cache.lock:
            return PastKeyValues(self.decoder, self.cache, [self.cache.fork(s) for s in self.sequences], self.mask)

    def __del__(self) -> None:
        with self.cache.lock:
            for sequence in self.sequences:
                self.cache.release(sequence)

    def __reduce__(self) -> Any:
        raise TypeError("past_key_values can be copied (copy.deepcopy), not pickled: it belongs to a loaded model")

    def __repr__(self) -> str:
        return f"PastKeyValues(batch={self.mask.shape[0]}, tokens={self.get_seq_length()})"


def require_past(past: Any, decoder: Decoder, batch: int) -> PastKeyValues | None:
    """past_key_values that this decoder can continue for so many rows: TypeError or ValueError if it is none."""
    if past is None or _is_empty_elsewhere(past):
        return None
    if not isinstance(past, PastKeyValues):
        raise TypeError(f"past_key_values must be what an earlier call of this model returned, got "
                        f"{type(past).__module__}.{type(past).__name__}: leave it out in the first call and pass the "
                        "result's .past_key_values on, or use model.session()")
    if past.decoder is not decoder:
        raise ValueError("past_key_values was made by another model, or before this one changed its dtype or device: "
                         "start again with the whole prompt")
    if past.mask.shape[0] != batch:
        raise ValueError(f"past_key_values holds a batch of {past.mask.shape[0]}, input_ids one of {batch}")
    return past


def _is_empty_elsewhere(past: Any) -> bool:
    """Whether this is a cache of transformers without tokens, as programs make one for the first call to fill."""
    count = getattr(past, "get_seq_length", None)
    if isinstance(past, PastKeyValues) or not type(past).__module__.startswith("transformers.") or not callable(count) \
            or count() != 0:
        return False
    warnings.warn("the empty cache of transformers stays empty: pass the result's .past_key_values on to continue",
                  UserWarning, stacklevel=outside())
    return True
