"""The bytes of each token of a byte-level BPE, looked up when they are first asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters stand for themselves, the others for 256 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


_BYTE_OF = _byte_alphabet()
_KNOWN: WeakKeyDictionary[Any, dict[int, bytes]] = WeakKeyDictionary()  # tokenizer -> the bytes of its tokens so far


class TokenBytes:
    """vocabulary[token] is the token's bytes; ids that the tokenizer has no token for have none.

    For a codegen_fast.CodeGenTokenizer, and for fast and slow tokenizers of transformers, if they are byte-level BPEs.
    Objects for the same tokenizer share what they know.
    """

    def __init__(self, tokenizer: Any):
        """Raises TypeError for what is no tokenizer. Looks nothing up."""
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise TypeError(f"tokenizer must be a tokenizer of codegen_fast or transformers, got {tokenizer!r:.80}")
        self._tokenizer = tokenizer
        self._known = _KNOWN.setdefault(tokenizer, {})

    def __getitem__(self, token: int) -> bytes:
        """Raises ValueError for a tokenizer that is no byte-level BPE."""
        try:
            return self._known[token]
        except KeyError:
            return self._look_up(token)

    def pieces(self, tokens: Iterable[int]) -> list[bytes]:
        """The bytes of each token."""
        known = self._known
        try:
            return [known[token] for token in tokens]
        except KeyError:
            return [self[token] for token in tokens]

    def join(self, tokens: Iterable[int]) -> bytes:
        """The bytes of all tokens."""
        return b"".join(self.pieces(tokens))

    def last_bytes(self, tokens: list[int], count: int) -> bytes:
        """The bytes of the last tokens: at least `count`, unless a token without bytes or the beginning comes first."""
        last: list[bytes] = []
        for token in reversed(tokens):
            piece = self[token]
            if count <= 0 or not piece:
                break
            last.append(piece)
            count -= len(piece)
        return b"".join(reversed(last))

    def _look_up(self, token: int) -> bytes:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:
            spelled = backend.id_to_token(token)
            if not self._known and "ByteLevel" not in repr(backend.decoder):
                raise self._not_byte_level(f"its decoder is {backend.decoder!r:.80}")
            is_spelled_in_bytes = True  # the decoder makes no difference between base and added tokens
        else:
            spelled, is_spelled_in_bytes = self._look_up_slow(token)
        if spelled is None:
            return b""  # not remembered: the tokenizer may get such a token
        values = [_BYTE_OF.get(character) for character in spelled] if is_spelled_in_bytes else [None]
        self._known[token] = spelled.encode("utf-8", "surrogatepass") if None in values else bytes(values)
        return self._known[token]

    def _look_up_slow(self, token: int) -> tuple[str | None, bool]:
        """A token's spelling by a tokenizer without backend, and whether it spells bytes."""
        tokenizer = self._tokenizer
        if not hasattr(tokenizer, "byte_decoder"):
            raise self._not_byte_level("it has neither a backend_tokenizer nor a byte_decoder")
        if token in getattr(tokenizer, "added_tokens_decoder", {}):
            return str(tokenizer.added_tokens_decoder[token]), False
        known = token < tokenizer.vocab_size
        return (tokenizer.convert_ids_to_tokens(token) if known else None), True

    def _not_byte_level(self, why: str) -> ValueError:
        return ValueError(f"{type(self._tokenizer).__name__} is no byte-level BPE as CodeGen's is ({why}): the bytes "
                          "of its tokens are not known")
