"""Where floating-point numbers end: python -m reliability.numerics --save

Denormal numbers, activations beyond float16, the last position of the context, 2000 positions against float64, and the
worst case of the integer products. Every part measures, asserts its bounds and says what it found.
"""

from __future__ import annotations

from typing import Any

TITLE = "Numerics"
PARTS = ("denormals", "overflow", "window", "drift", "worst_case")


def section(found: dict[str, Any]) -> str:
    from importlib import import_module

    return "\n".join(import_module(f"{__name__}.{part}").lines(found[part]) for part in PARTS if part in found)
