"""Numbers as people read them."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """14215000000 -> "14.2 GB"."""
    return f"{short(nbytes)}B"


def short(n: float) -> str:
    """Three digits and a decimal prefix: 4729344 -> "4.73 M"."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= factor:
            value = n / factor
            # Never "1e+03": past three digits, whole numbers.
            return f"{value:.0f} {prefix}" if value >= 100 else f"{value:.3g} {prefix}"
    return f"{n:.0f} "


def cache_size(nbytes: int) -> str:
    """A processor's cache, which is counted in powers of two: 33554432 -> "32 MiB"."""
    return f"{nbytes / 2**20:.0f} MiB"


def rate(per_second: float) -> str:
    """Tokens a second: 79.03 -> "79.0", 1337.7 -> "1338"."""
    return f"{per_second:.0f}" if per_second >= 1000 else f"{per_second:.1f}"


def count(n: int, noun: str) -> str:
    """1, "thread" -> "1 thread"; 2 -> "2 threads"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """0.807 -> "0.81 s"; 0.0042 -> "4.2 ms"."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"
