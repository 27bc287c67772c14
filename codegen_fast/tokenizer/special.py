"""The named special tokens of a tokenizer: `eos_token` and `eos_token_id` and so on, readable and settable."""

import operator
import warnings

from tokenizers import AddedToken, Tokenizer

from .files import NAMED_TOKENS, token_text


def _text_property(name: str) -> property:
    def get(self) -> str | None:
        return self._named[name]

    def set_(self, token: str | AddedToken | int | None) -> None:
        # The sampling script of the CodeGen repository writes `tokenizer.pad_token = 50256`: an id.
        self._named[name] = self._text_of_id(name, token) if isinstance(token, int) else token_text(token, name)
        if self._named[name] is not None and self._backend.token_to_id(self._named[name]) is None:
            warnings.warn(f"{name} = {token!r:.80} is not in the vocabulary, so its id is that of the unknown token; "
                          f"add it with tokenizer.add_special_tokens({{{name!r}: {token!r:.80}}})", stacklevel=2)

    return property(get, set_, doc=f"The {name} as text, or None; also accepts a token id.")


def _id_property(name: str) -> property:
    def get(self) -> int | None:
        return None if self._named[name] is None else self.convert_tokens_to_ids(self._named[name])

    def set_(self, token_id: int | None) -> None:
        self._named[name] = None if token_id is None else self._text_of_id(f"{name}_id", token_id)

    return property(get, set_, doc=f"The id of {name}, or None.")


class SpecialTokens:
    """Mixed into CodeGenTokenizer, whose `_backend` holds the vocabulary.

    Setting a name doesn't change the vocabulary; `add_special_tokens` does.
    """

    _backend: Tokenizer
    _named: dict[str, str | None]

    bos_token, bos_token_id = _text_property("bos_token"), _id_property("bos_token")
    eos_token, eos_token_id = _text_property("eos_token"), _id_property("eos_token")
    unk_token, unk_token_id = _text_property("unk_token"), _id_property("unk_token")
    pad_token, pad_token_id = _text_property("pad_token"), _id_property("pad_token")

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name -> text of the named tokens that are set."""
        return {name: text for name, text in self._named.items() if text is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of the named and the extra special tokens, each once."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        """Add a token or a list of them (str or AddedToken) behind the vocabulary; returns how many were new."""
        new_tokens = [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else list(new_tokens)
        for token in new_tokens:
            if not isinstance(token, (str, AddedToken)):
                raise TypeError(f"a token to add must be a str or an AddedToken, got {token!r}")
        if special_tokens:
            return self._backend.add_special_tokens(new_tokens)
        return self._backend.add_tokens(new_tokens)

    def add_special_tokens(self, special_tokens_dict: dict) -> int:
        """Name special tokens, e.g. {"pad_token": "<pad>"}, adding those that are new; returns how many were.

        "extra_special_tokens" (a list) replaces the tokenizer's list. Ids from the model's vocab_size up have no row in
        its embedding, so a model with the CodeGen padding (51200) has room for 905 new tokens.
        """
        texts = {}
        for name, token in special_tokens_dict.items():
            if name in ("extra_special_tokens", "additional_special_tokens"):
                texts[name] = [token_text(each, name) for each in token]
            elif name in NAMED_TOKENS and token is not None:
                texts[name] = token_text(token, name)
            else:
                raise ValueError(f"cannot add {name!r}: {token!r}; expected text for one of "
                                 f"{', '.join(NAMED_TOKENS)}, extra_special_tokens")
        added = 0
        for name, text in texts.items():
            added += self._backend.add_special_tokens([text] if isinstance(text, str) else text)
            if name in NAMED_TOKENS:
                self._named[name] = text
            else:
                self.extra_special_tokens = text
        return added

    def _text_of_id(self, name: str, token_id: int) -> str:
        index = operator.index(token_id)
        text = self._backend.id_to_token(index) if index >= 0 else None
        if text is None:
            raise ValueError(f"{name} = {token_id!r}: the tokenizer has no such token, "
                             f"its ids are 0 to {len(self) - 1}")
        return text
