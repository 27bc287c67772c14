"""What a tokenizer.json may be made of: the stages of a byte-level BPE.

The `tokenizers` library also has stages that a stranger could use against whoever loads them: regular expressions that
take for ever, replacements that make a text grow without end. CodeGen's tokenizers have none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Place -> the types of its stages.
STAGES = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("ByteLevel", "Digits"),
    "post_processor": ("ByteLevel", "TemplateProcessing"),
    "decoder": ("ByteLevel",),
}
_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors",
          "decoder": "decoders"}  # of a Sequence
_MOST_STAGES = 8
_MOST_TOKENS = 1 << 22  # ids: an array of as many is made


def check_pipeline(values: dict[str, Any], path: Path) -> None:
    """ValueError that names the part of a tokenizer.json that a byte-level BPE does not have."""
    model = values.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else type(model).__name__
    if kind != "BPE":
        raise ValueError(f"{path} holds a {kind!r:.80} tokenizer, expected a byte-level BPE")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise ValueError(f"{path} is not a tokenizer file: its model has no vocab, expected an object of tokens and ids")
    check_vocabulary(vocab, path)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        # With a prefix or a suffix that the merges do not have, the library panics; dropout draws tokens at random.
        if model.get(name) not in (None, "", 0):
            raise ValueError(f"{path} has {name} = {model[name]!r:.80}; expected none in a byte-level BPE")
    for place, known in STAGES.items():
        stages = _stages(values.get(place), place)
        if len(stages) > _MOST_STAGES:
            raise ValueError(f"{path} has {len(stages)} stages in its {place}, expected at most {_MOST_STAGES}")
        for stage in stages:
            name = stage.get("type") if isinstance(stage, dict) else stage
            if name not in known:
                raise ValueError(f"{path} has {name!r:.80} in its {place}, which a byte-level BPE does not have; "
                                 f"expected {' or '.join(known)}")


def check_vocabulary(vocab: dict[str, Any], path: Path) -> None:
    """ValueError that names a token whose id is none."""
    for text, token_id in vocab.items():
        if type(token_id) is not int or not 0 <= token_id < _MOST_TOKENS:
            raise ValueError(f"{path} gives the token {text!r:.80} the id {token_id!r:.80}; expected a number from 0 to "
                             f"{_MOST_TOKENS - 1}")


def _stages(stage: Any, place: str) -> list[Any]:
    """The stage, or those of a Sequence; none for null."""
    if stage is None:
        return []
    if isinstance(stage, dict) and stage.get("type") == "Sequence":
        parts = stage.get(_PARTS[place])
        return parts if isinstance(parts, list) else [stage]
    return [stage]
