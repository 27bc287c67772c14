"""Completions on the terminal: one as it comes, of several each when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from ..generation.call import Generation
from ..generation.text import Piece
from ..memory import named_where_full


def beam_pieces(generation: Generation, device: torch.device) -> Iterator[Piece]:
    """Runs a generation of beams, whose text is known at the end only: a piece for each result, best first."""
    with named_where_full(device):
        for _ in generation.events():
            pass
    for row, tokens in enumerate(generation.rows):
        ended = tokens[-1] in generation.eos_token_ids
        yield Piece(generation.text(row), row, "eos" if ended else "length", tuple(tokens))


def write_sample(write: Callable[[str], None], prompt: str, pieces: Iterable[Piece]) -> None:
    """Writes the prompt, and its completion as it comes. An interruption leaves a whole line."""
    write(prompt)
    last = prompt
    try:
        for piece in pieces:
            if piece.text:
                last = piece.text
                write(last)
    except KeyboardInterrupt:
        write(_line_end(last))
        raise
    write(_line_end(last))


def write_samples(write: Callable[[str], None], prompt: str, pieces: Iterable[Piece], samples: int,
                  name: str = "sample") -> None:
    """Writes each sample when it is done, whole, below a line with its number.

    Those that an interruption cuts short are left out. name: what a sample is called.
    """
    texts = [prompt] * samples
    for piece in pieces:
        texts[piece.row] += piece.text
        if piece.finish_reason is not None:
            text = texts[piece.row]
            write(f"=== {name} {piece.row + 1} of {samples} ===\n{text}{_line_end(text)}")


def _line_end(text: str) -> str:
    return "" if text.endswith("\n") else "\n"
