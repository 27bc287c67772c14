"""Figures of the CodeGen paper (Nijkamp et al., arXiv 2203.13474), in percent, and whose they are."""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..config import CodeGenConfig

# HumanEval: pass@1, pass@10, pass@100, each at its best temperature.
HUMANEVAL = {
    ("350M", "mono"): (12.76, 23.11, 35.19), ("2B", "mono"): (23.70, 36.64, 57.01),
    ("6B", "mono"): (26.13, 42.29, 65.82), ("16B", "mono"): (29.28, 49.86, 75.00),
    ("350M", "multi"): (6.67, 10.61, 16.84), ("2B", "multi"): (14.51, 24.67, 38.56),
    ("6B", "multi"): (18.16, 28.71, 44.85), ("16B", "multi"): (18.32, 32.07, 50.80),
    ("350M", "nl"): (2.12, 4.10, 7.38), ("2B", "nl"): (6.70, 14.15, 22.84),
    ("6B", "nl"): (10.43, 18.36, 29.85), ("16B", "nl"): (14.24, 23.46, 38.33),
}
HUMANEVAL_KS = (1, 10, 100)
# MTPB: pass rate.
MTPB = {
    ("350M", "mono"): 16.98, ("2B", "mono"): 38.72, ("6B", "mono"): 43.52, ("16B", "mono"): 47.34,
    ("350M", "multi"): 4.09, ("2B", "multi"): 20.82, ("6B", "multi"): 25.51, ("16B", "multi"): 26.27,
    ("350M", "nl"): 0.23, ("2B", "nl"): 15.31, ("6B", "nl"): 19.37, ("16B", "nl"): 30.33,
}
_SHAPES = {(20, 1024): "350M", (32, 2560): "2B", (33, 4096): "6B", (34, 6144): "16B"}  # (n_layer, n_embd)
_NAME = re.compile(r"(350m|2b|6b|16b)[-_](mono|multi|nl)\b", re.IGNORECASE)


@dataclass(frozen=True)
class PaperModel:
    """One of the paper's models; size as in its name, data: "mono", "multi" or "nl"."""

    size: str
    data: str

    def __str__(self) -> str:
        return f"CodeGen-{self.data.capitalize() if self.data != 'nl' else 'NL'} {self.size}"

    def humaneval(self, k: int) -> float | None:
        """pass@k in percent; None for a k that the paper does not give."""
        return dict(zip(HUMANEVAL_KS, HUMANEVAL[self.size, self.data])).get(k)

    def mtpb(self) -> float:
        """Pass rate in percent."""
        return MTPB[self.size, self.data]


def paper_model(name: str, config: CodeGenConfig) -> PaperModel | None:
    """Which of the paper's models this is: by its name (a folder's or a Hub id), if its shape is that of the name.

    What it was trained on stands nowhere but in the name; so a folder without one is none.
    """
    found = _NAME.search(name)
    if found is None or _SHAPES.get((config.n_layer, config.n_embd), "").lower() != found[1].lower():
        return None
    return PaperModel(_SHAPES[config.n_layer, config.n_embd], found[2].lower())
