"""Where a text is complete: decided for each row while its tokens come, or afterwards, with the same result.

    rules.py        what ends a text: "function", "statement", "line", "truncation", regular expressions, stop strings
    search.py       StopSearch, the rows of one call under one rule; and `truncate`, the same afterwards
    expressions.py  the search for regular expressions; all other rules are searched for in compiled code
    vocabulary.py   TokenBytes: the bytes of each token
    text.py         PieceText: bytes as they come -> pieces of text that split no character
"""

from .rules import StopRule, StopStrings, as_stop_rule
from .search import StopSearch, truncate
from .text import PieceText
from .vocabulary import TokenBytes

__all__ = ["PieceText", "StopRule", "StopSearch", "StopStrings", "TokenBytes", "as_stop_rule", "truncate"]
