"""CodeGenTokenizer: text <-> ids of a byte-level BPE with runs of spaces and tabs, over the `tokenizers` library.

Behaves as transformers' CodeGenTokenizer does, except that it pads on the left (a decoder continues the last token),
never cleans up spaces (decoding returns what was encoded), and says what is wrong with a bad argument. A call changes
no state of the tokenizer, so threads may share one.
"""

import difflib
import operator
import os
import re
import warnings
from collections.abc import Mapping, Sized
from pathlib import Path

from tokenizers import Encoding, Tokenizer, pre_tokenizers

from .batch import BatchEncoding, as_fields, check_side, check_tensor_type, pad_rows, plan_lengths
from .files import NAMED_TOKENS, WANTED_FILES, read_folder, write_folder
from .special import SpecialTokens

# Arguments of transformers' tokenizers that CodeGen programs have no use for, and their defaults.
NOT_YET = {"text_pair": None, "text_target": None, "text_pair_target": None, "stride": 0, "is_split_into_words": False,
           "return_overflowing_tokens": False, "split_special_tokens": False, "tokenizer_kwargs": None}
# Arguments of from_pretrained that choose nothing here: there is one implementation, and it runs no foreign code.
WITHOUT_EFFECT = ("trust_remote_code", "use_fast", "clean_up_tokenization_spaces")
CONFIGURABLE = (*NAMED_TOKENS, "padding_side", "truncation_side", "model_max_length", "add_prefix_space",
                "extra_special_tokens")
UNLIMITED = int(1e30)  # transformers' model_max_length where none is set


class CodeGenTokenizer(SpecialTokens):
    """A tokenizer over a `tokenizers.Tokenizer`; `from_pretrained` makes one from a folder or a Hub id."""

    model_input_names = ("input_ids", "attention_mask")
    is_fast = True
    clean_up_tokenization_spaces = False

    def __init__(self, backend: Tokenizer, *, bos_token=None, eos_token=None, unk_token=None, pad_token=None,
                 extra_special_tokens=(), padding_side: str = "left", truncation_side: str = "right",
                 model_max_length: int | None = None, name_or_path: str = "", config: dict | None = None):
        self._backend = backend
        self._named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        self._config = dict(config or {})  # the folder's, of which save_pretrained keeps what it doesn't know
        self.extra_special_tokens = list(extra_special_tokens)
        self.padding_side = padding_side
        self.truncation_side = truncation_side
        self.model_max_length = UNLIMITED if model_max_length is None else model_max_length
        if not isinstance(self.model_max_length, (int, float)) or self.model_max_length <= 0:
            raise ValueError(f"model_max_length is {model_max_length!r:.80}, expected a number of tokens")
        self.name_or_path = name_or_path

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, *, revision: str | None = None, cache_dir=None,
                        token: str | bool | None = None, local_files_only: bool = False, **settings):
        """Load a tokenizer from a folder or a Hub id.

        settings override the folder's: bos_token, eos_token, unk_token, pad_token, extra_special_tokens, padding_side,
        truncation_side, model_max_length, add_prefix_space. trust_remote_code and use_fast are accepted.
        Raises OSError where there is no tokenizer, ValueError where its files are corrupt, TypeError for an unknown
        setting.
        """
        for name in settings:
            if name not in CONFIGURABLE and name not in WITHOUT_EFFECT:
                raise TypeError(_unknown("from_pretrained", name, (*CONFIGURABLE, *WITHOUT_EFFECT)))
        if not isinstance(path_or_repo, (str, os.PathLike)):
            raise TypeError(f"path_or_repo must be a folder or a Hub id, got {path_or_repo!r}")
        folder = Path(path_or_repo)
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file; pass the folder that holds the tokenizer")
        if not folder.is_dir():
            from ..weights.hub import resolve  # here, since a folder needs no Hub client

            folder = resolve(path_or_repo, list(WANTED_FILES), revision=revision, cache_dir=cache_dir, token=token,
                             local_files_only=local_files_only)
        settings = {name: value for name, value in settings.items() if value is not None and name in CONFIGURABLE}
        read = read_folder(Path(folder), settings)
        chosen = {name: read.config[name] for name in ("padding_side", "truncation_side", "model_max_length")
                  if read.config.get(name) is not None}
        return cls(read.backend, **read.named, extra_special_tokens=read.extra_special, **chosen,
                   name_or_path=str(path_or_repo), config=read.config)

    def save_pretrained(self, save_directory: str | os.PathLike) -> tuple[str, ...]:
        """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; returns their paths.

        transformers loads the folder too.
        """
        config = {
            **self._config, **self._named, "tokenizer_class": self._config.get("tokenizer_class") or "CodeGenTokenizer",
            "padding_side": self.padding_side, "truncation_side": self.truncation_side,
            "model_max_length": self.model_max_length, "add_prefix_space": self.add_prefix_space,
            "extra_special_tokens": self.extra_special_tokens, "clean_up_tokenization_spaces": False,
        }
        return write_folder(Path(save_directory), self._backend, config)

    # What the tokenizer is.

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The `tokenizers.Tokenizer` underneath."""
        return self._backend

    @property
    def vocab_size(self) -> int:
        """Tokens of the base vocabulary, without the added ones; `len(tokenizer)` counts all."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def get_added_vocab(self) -> dict[str, int]:
        """Added token -> id, by id."""
        return {token.content: index for index, token in sorted(self._backend.get_added_tokens_decoder().items())}

    @property
    def add_prefix_space(self) -> bool:
        """Whether a space is put before every text."""
        stage = self._backend.pre_tokenizer
        stages = list(stage) if isinstance(stage, pre_tokenizers.Sequence) else [stage]
        return any(isinstance(each, pre_tokenizers.ByteLevel) and each.add_prefix_space for each in stages)

    @property
    def padding_side(self) -> str:
        """The side that padding fills, "left" or "right"."""
        return self._padding_side

    @padding_side.setter
    def padding_side(self, side: str) -> None:
        self._padding_side = check_side("padding_side", side)

    @property
    def truncation_side(self) -> str:
        """The side that truncation cuts, "left" or "right"."""
        return self._truncation_side

    @truncation_side.setter
    def truncation_side(self, side: str) -> None:
        self._truncation_side = check_side("truncation_side", side)

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
                f"len={len(self)}, model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
                f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})")

    # Text to ids.

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True, padding: bool | str = False,
                 truncation: bool | str | None = None, max_length: int | None = None,
                 pad_to_multiple_of: int | None = None, padding_side: str | None = None,
                 return_tensors: str | None = None, return_attention_mask: bool | None = None,
                 return_token_type_ids: bool | None = None, return_special_tokens_mask: bool = False,
                 return_offsets_mapping: bool = False, return_length: bool = False, verbose: bool = True,
                 **not_yet) -> BatchEncoding:
        """Encode a text, or a list of texts as a batch.

        Returns input_ids and attention_mask (1: a token of the text, 0: padding): lists of ints for a text, lists of
        such lists for a batch; int64 of shape (texts, tokens) with return_tensors="pt" (torch) or "np" (numpy). The
        other return_... arguments add their fields. padding: False, True or "longest", "max_length"; truncation: False,
        True; max_length alone truncates. Special tokens in a text are recognised. `verbose` has no effect.
        Raises TypeError for what is not text, ValueError for lone surrogates and for arguments out of range.
        """
        for name, value in not_yet.items():
            if name not in NOT_YET:
                raise TypeError(_unknown("tokenizer()", name, (*NOT_YET, *CodeGenTokenizer.__call__.__kwdefaults__)))
            if value != NOT_YET[name]:
                raise NotImplementedError(f"the tokenizer has no {name} (got {value!r})")
        check_tensor_type(return_tensors)
        side = self.padding_side if padding_side is None else check_side("padding_side", padding_side)
        lengths = plan_lengths(padding, truncation, max_length, pad_to_multiple_of,
                               model_max_length=self.model_max_length, has_pad_token=self.pad_token is not None)
        encodings = self._encode_rows(text, add_special_tokens, lengths.cut)
        fields = {"input_ids": [row.ids for row in encodings]}
        if return_token_type_ids:
            fields["token_type_ids"] = [row.type_ids for row in encodings]
        if return_attention_mask is not False:
            fields["attention_mask"] = [row.attention_mask for row in encodings]
        if return_special_tokens_mask:
            fields["special_tokens_mask"] = [row.special_tokens_mask for row in encodings]
        if return_offsets_mapping:
            fields["offset_mapping"] = [row.offsets for row in encodings]
        fields = pad_rows(fields, lengths, side, self.pad_token_id)
        if return_length:
            fields["length"] = [len(row) for row in fields["input_ids"]]
        if return_tensors is None and isinstance(text, str):
            fields = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in fields.items()}
        return BatchEncoding(fields).convert_to_tensors(return_tensors)

    def encode(self, text: str | list[str], **arguments):
        """The input_ids of `tokenizer(text, **arguments)`."""
        return self(text, **arguments)["input_ids"]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, in the vocabulary's spelling (bytes as printable characters)."""
        return self._encode_rows(text, add_special_tokens, None)[0].tokens

    def pad(self, encoded_inputs, padding: bool | str = True, max_length: int | None = None,
            pad_to_multiple_of: int | None = None, padding_side: str | None = None,
            return_attention_mask: bool | None = None, return_tensors: str | None = None,
            verbose: bool = True) -> BatchEncoding:
        """Pad encoded texts: a mapping with input_ids (one row or a batch), or a list of mappings with one row each.

        Tensors and arrays are given back as such unless return_tensors says otherwise. The input is not changed.
        """
        check_tensor_type(return_tensors)
        side = self.padding_side if padding_side is None else check_side("padding_side", padding_side)
        lengths = plan_lengths(padding, False, max_length, pad_to_multiple_of,
                               model_max_length=self.model_max_length, has_pad_token=self.pad_token is not None)
        fields, batched, kind = as_fields(encoded_inputs)
        if return_attention_mask is not False and "attention_mask" not in fields:
            fields["attention_mask"] = [[1] * len(row) for row in fields["input_ids"]]
        fields = pad_rows(fields, lengths, side, self.pad_token_id)
        if not batched:
            fields = {name: rows[0] for name, rows in fields.items()}
        return BatchEncoding(fields).convert_to_tensors(return_tensors or kind)

    def _encode_rows(self, text: str | list[str], add_special_tokens: bool, cut: int | None) -> list[Encoding]:
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)):
            raise TypeError(f"text must be a str or a list of str, got {type(text).__name__}: {text!r:.80}")
        for index, each in enumerate(texts):
            if not isinstance(each, str):
                raise TypeError(f"text[{index}] must be a str, got {type(each).__name__}: {each!r:.80}")
        # A tokenizer.json may ask for tokens around the text, which truncation must leave room for.
        around = self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0
        try:
            if cut is None:
                return self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        except TypeError as error:
            raise ValueError(_surrogate_complaint(texts)) from error
        if cut < around:
            raise ValueError(f"max_length is {cut}, but the tokenizer adds {around} tokens to every text")
        for encoding in encodings:
            encoding.truncate(cut - around, direction=self.truncation_side)
        return [self._backend.post_process(each, None, True) for each in encodings] if around else encodings

    # Ids to text.

    def decode(self, token_ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None,
               truncate_before_pattern: list[str] | None = None) -> str | list[str]:
        """The text of ids: an int, or a list, array or tensor of them; a batch gives a list of texts.

        Ids without a token (the model's vocabulary is larger than the tokenizer's) decode to nothing; bytes that are
        no UTF-8 to U+FFFD. truncate_before_pattern: see `truncate`. Raises ValueError for a negative id, TypeError for
        what is no id.
        """
        if clean_up_tokenization_spaces:
            warnings.warn("clean_up_tokenization_spaces=True is ignored: it would change the text", stacklevel=2)
        if isinstance(token_ids, Mapping):
            token_ids = token_ids["input_ids"]
        if hasattr(token_ids, "tolist"):  # numpy, torch
            token_ids = token_ids.tolist()
        if isinstance(token_ids, (list, tuple)) and token_ids and _is_row(token_ids[0]):
            return [self._decode_row(_id_list(row), skip_special_tokens, truncate_before_pattern) for row in token_ids]
        return self._decode_row(_id_list(token_ids), skip_special_tokens, truncate_before_pattern)

    def batch_decode(self, sequences, skip_special_tokens: bool = False,
                     clean_up_tokenization_spaces: bool | None = None,
                     truncate_before_pattern: list[str] | None = None) -> list[str]:
        """As decode, and always a list: an empty batch gives [], a single row of ids one text."""
        if isinstance(sequences, Sized) and getattr(sequences, "ndim", 1) > 0 and len(sequences) == 0:
            return []
        texts = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces, truncate_before_pattern)
        return [texts] if isinstance(texts, str) else texts

    def truncate(self, completion: str, truncate_before_pattern: list[str]) -> str:
        r"""Cut a completion before its second top-level print, then its second top-level def, then the first match of
        any of the regular expressions (multi-line: ^ matches at each line), e.g. ["^#", "^'''", "\n\n\n"].
        """
        if isinstance(truncate_before_pattern, str):
            raise TypeError(f"truncate_before_pattern must be a list of patterns, got {truncate_before_pattern!r}")
        patterns = []
        for pattern in truncate_before_pattern:
            try:
                patterns.append(re.compile(pattern, re.MULTILINE))
            except re.error as error:
                raise ValueError(f"truncate_before_pattern holds {pattern!r}, which is no pattern: {error}") from error
        for keyword in ("^print", "^def"):
            starts = [match.start() for match in re.finditer(keyword, completion, re.MULTILINE)]
            if len(starts) > 1:
                completion = completion[:starts[1]]
        matches = [pattern.search(completion) for pattern in patterns]
        return completion[:min((match.start() for match in matches if match), default=len(completion))]

    def convert_ids_to_tokens(self, ids, skip_special_tokens: bool = False) -> str | None | list[str | None]:
        """The token (in the vocabulary's spelling) of an id, or those of several; None where an id has no token."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        skipped = set(self.all_special_ids) if skip_special_tokens else ()
        tokens = [self._backend.id_to_token(index) for index in _id_list(ids) if index not in skipped]
        return self._backend.id_to_token(ids) if isinstance(ids, int) else tokens

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | None | list[int | None]:
        """The id of a token, or those of several; the unknown token's where it is not in the vocabulary."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        index = self._backend.token_to_id(tokens)
        if index is None and self.unk_token is not None:
            index = self._backend.token_to_id(self.unk_token)
        return index

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens in the vocabulary's spelling."""
        return self._backend.decoder.decode(tokens)

    def _decode_row(self, ids: list[int], skip_special_tokens: bool, truncate_before_pattern) -> str:
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        return self.truncate(text, truncate_before_pattern) if truncate_before_pattern else text


class AutoTokenizer:
    """`AutoTokenizer.from_pretrained`, the spelling of the model cards."""

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, **arguments) -> CodeGenTokenizer:
        """See `CodeGenTokenizer.from_pretrained`."""
        return CodeGenTokenizer.from_pretrained(path_or_repo, **arguments)


def _unknown(function: str, name: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{function} got an unknown argument {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")


def _surrogate_complaint(texts: list[str]) -> str:
    for index, text in enumerate(texts):
        for position, character in enumerate(text):
            if "\ud800" <= character <= "\udfff":
                return (f"text[{index}] has a lone surrogate {character!r} at character {position}: "
                        f"that is no valid text; decode its bytes with errors='replace'")
    return "the tokenizers library refused the text"


def _is_row(value) -> bool:
    return isinstance(value, (list, tuple, range)) or getattr(value, "ndim", 0) > 0


def _id_list(ids) -> list[int]:
    """Token ids as a list of Python ints; an id alone is a list of one."""
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    try:
        indices = list(map(operator.index, ids if isinstance(ids, (list, tuple, range)) else [ids]))
    except TypeError as error:
        raise TypeError(f"token ids must be integers, got {ids!r:.80}") from error
    for index in indices:
        if not 0 <= index < 2**32:
            raise ValueError(f"token id {index} is out of range: ids are 0 or larger, and below 2**32")
    return indices
