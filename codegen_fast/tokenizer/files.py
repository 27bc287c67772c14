"""Tokenizer folders: reads every layout that CodeGen checkpoints come in, writes one.

A folder holds either `tokenizer.json` (the whole pipeline), or `vocab.json` + `merges.txt` (GPT-2's vocabulary) with
`added_tokens.json` or the config's `added_tokens_decoder` (the runs of spaces and tabs; NL checkpoints have none).
`tokenizer_config.json` and `special_tokens_map.json` name the special tokens; both may be absent.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from ..strangers import MOST_TEXT_BYTES, is_there, one_line, read_json_object, regular_file
from .pipeline import check_pipeline, check_vocabulary

WANTED_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
END_OF_TEXT = "<|endoftext|>"
# Classes whose folders hold a byte-level BPE; None: the config doesn't say, or there is no config.
KNOWN_CLASSES = (None, "CodeGenTokenizer", "GPT2Tokenizer", "PreTrainedTokenizer", "TokenizersBackend")
# Keys of a loaded config that describe the machine that wrote it, or that tokenizer.json says better.
NOT_WRITTEN_BACK = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "added_tokens_decoder", "auto_map",
                    "additional_special_tokens", "vocab_file", "merges_file")


@dataclass(frozen=True)
class TokenizerFolder:
    """What a folder says: the pipeline, the config as it stands there, and the special tokens (None: not set)."""

    backend: Tokenizer
    config: dict
    named: dict[str, str | None]
    extra_special: list[str]


def read_folder(folder: Path, settings: dict) -> TokenizerFolder:
    """Read a tokenizer from `folder`; `settings` override the keys of its tokenizer_config.json.

    Raises OSError where the folder holds no tokenizer, ValueError where a file is corrupt, files contradict each
    other, or the tokenizer is not a byte-level BPE (the message names the file).
    """
    config = _read_object(folder / "tokenizer_config.json")
    if not isinstance(config.get("added_tokens_decoder", {}), dict):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder must be an object, "
                         f"got {config['added_tokens_decoder']!r:.80}")
    _check_class(config.get("tokenizer_class"), folder)
    config.update(settings)
    backend = _read_backend(folder, config)
    # tokenizer.json may carry the truncation and padding of the last call before it was written. They are arguments of
    # a call here, except that padding tells which token pads.
    leftover_padding = backend.padding or {}
    backend.no_padding()
    backend.no_truncation()

    named_in = dict(config)
    if "added_tokens_decoder" not in config:
        named_in.update(_read_object(folder / "special_tokens_map.json"), **settings)
    named = {name: token_text(named_in.get(name), f"{folder}: {name}") for name in NAMED_TOKENS}
    for name in ("bos_token", "eos_token", "unk_token"):
        if name not in named_in:
            named[name] = END_OF_TEXT
    if named["pad_token"] is None and backend.token_to_id(leftover_padding.get("pad_token", "")) is not None:
        named["pad_token"] = leftover_padding["pad_token"]
    extra = named_in.get("extra_special_tokens") or named_in.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list):
        raise ValueError(f"{folder}: extra_special_tokens must be a list or an object, got {extra!r:.80}")
    extra_special = [token_text(token, f"{folder}: extra_special_tokens") for token in extra]

    # In order: new tokens get their ids by it.
    special = [text for text in dict.fromkeys([*named.values(), *extra_special]) if text is not None]
    _add_listed_tokens(backend, folder, config, special)
    return TokenizerFolder(backend, config, named, extra_special)


def write_folder(folder: Path, backend: Tokenizer, config: dict) -> tuple[str, ...]:
    """Write the tokenizer's files (each beside and renamed) and return their paths.

    special_tokens_map.json says nothing that the config doesn't; it replaces one that an older tokenizer left there,
    which would win over the config.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in config.items() if key not in NOT_WRITTEN_BACK}
    named = {name: config[name] for name in NAMED_TOKENS if config.get(name) is not None}
    texts = {
        "special_tokens_map.json": json.dumps(named, indent=2) + "\n",
        "tokenizer_config.json": json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
        "tokenizer.json": backend.to_str(pretty=True),
    }
    for name, text in texts.items():
        partial = folder / f"{name}.{os.getpid()}.partial"
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, folder / name)
        finally:
            partial.unlink(missing_ok=True)
    return tuple(str(folder / name) for name in texts)


def set_prefix_space(backend: Tokenizer, add_prefix_space: bool) -> None:
    """Make the byte-level pre-tokenizer put a space before the text, or not; the other stages stay as they are."""
    pre_tokenizer = backend.pre_tokenizer
    stages = list(pre_tokenizer) if isinstance(pre_tokenizer, pre_tokenizers.Sequence) else [pre_tokenizer]
    for stage in stages:
        if isinstance(stage, pre_tokenizers.ByteLevel):
            stage.add_prefix_space = add_prefix_space
    backend.pre_tokenizer = stages[0] if len(stages) == 1 else pre_tokenizers.Sequence(stages)


def token_text(token: object, name: str) -> str | None:
    """The text of a token as JSON files and callers give it: a string, an AddedToken (or its fields), or None."""
    if isinstance(token, AddedToken):
        return token.content
    if isinstance(token, dict) and isinstance(token.get("content"), str):
        return token["content"]
    if token is None or isinstance(token, str):
        return token
    raise ValueError(f"{name} must be a string or an added token, got {token!r:.80}")


def _check_class(tokenizer_class: str | None, folder: Path) -> None:
    name = tokenizer_class.removesuffix("Fast") if isinstance(tokenizer_class, str) else tokenizer_class
    if name not in KNOWN_CLASSES:
        known = ", ".join(known for known in KNOWN_CLASSES if known)
        raise ValueError(f"{folder / 'tokenizer_config.json'}: tokenizer_class is {tokenizer_class!r:.80}, which is not "
                         f"a CodeGen tokenizer; expected one of {known}")


def _read_object(path: Path) -> dict:
    """The JSON object in `path`; {} where there is no such file."""
    return read_json_object(path) if is_there(path) else {}


def _read_backend(folder: Path, config: dict) -> Tokenizer:
    """The pipeline of the folder: tokenizer.json's, or GPT-2's over vocab.json and merges.txt."""
    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if is_there(whole):
        check_pipeline(read_json_object(whole), whole)
        backend = _load(f"{whole} is not a tokenizer file", Tokenizer.from_file, str(regular_file(whole)))
        if "add_prefix_space" in config:
            set_prefix_space(backend, bool(config["add_prefix_space"]))
        return backend
    if not (is_there(vocab) and is_there(merges)):
        found = sorted(name for name in WANTED_FILES if is_there(folder / name))
        raise OSError(f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt "
                      f"(with added_tokens.json, where there are added tokens); found {', '.join(found) or 'neither'}")
    for key in ("add_bos_token", "add_eos_token"):
        if config.get(key):
            raise ValueError(f"{folder / 'tokenizer_config.json'}: {key} is {config[key]!r:.80}, but a CodeGen tokenizer "
                             f"adds no tokens to a text; set it to false")
    check_vocabulary(read_json_object(vocab), vocab)
    sound = [str(regular_file(path, MOST_TEXT_BYTES)) for path in (vocab, merges)]
    backend = Tokenizer(_load(f"{vocab} and {merges} are not a BPE vocabulary", models.BPE.from_file, *sound))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _load(complaint: str, read, *paths: str):
    try:
        return read(*paths)
    except BaseException as error:  # plain Exception for all it cannot parse, and panics, which are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"{complaint}: {one_line(error)}") from error


def _add_listed_tokens(backend: Tokenizer, folder: Path, config: dict, special: list[str]) -> None:
    """Add what the folder lists beside its vocabulary, at the ids it lists, and whatever `special` token is missing."""
    present = backend.get_added_tokens_decoder()
    known = {token.content for token in present.values()}
    source, listed = folder / "added_tokens.json", {}
    if "added_tokens_decoder" in config:
        source = folder / "tokenizer_config.json"
        for token_id, fields in config["added_tokens_decoder"].items():
            try:
                flags = {name: bool(fields[name]) for name in TOKEN_FLAGS if name in fields}
                listed[int(token_id)] = AddedToken(fields["content"], **flags)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{source}: added_tokens_decoder[{token_id!r:.80}] is {fields!r:.80}, "
                                 f"expected the fields of a token under its id") from error
    else:
        for text, token_id in _read_object(source).items():
            if not isinstance(token_id, int):
                raise ValueError(f"{source}: the id of {text!r:.80} is {token_id!r:.80}, expected an integer")
            listed[token_id] = AddedToken(text, normalized=text not in special, special=text in special)
    backend.add_tokens([token for _, token in sorted(listed.items()) if token.content not in known])
    for token_id, token in listed.items():
        # The library numbers added tokens itself, in order; a gap in the list would shift every token after it.
        actual = backend.token_to_id(token.content)
        if actual != token_id:
            raise ValueError(f"{source}: token {token.content!r:.80} is listed with id {token_id}, "
                             f"but the vocabulary gives it {actual}")
    flagged = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False)
                                for text in special if text not in flagged])
