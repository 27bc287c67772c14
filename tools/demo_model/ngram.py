"""The baseline: an interpolated modified Kneser-Ney 5-gram model over the same tokens and the same training files.

    python ngram.py --work DIR

Prints and returns its cost on the held-out files in bits per byte. Chen and Goodman (1999), three discounts an order.
"""
import argparse
import json
from pathlib import Path

import numpy as np

ORDER = 5


def grams(ids, starts, end, vocab):
    """int64 keys of the ORDER-gram that ends at each token; a document is preceded by <|endoftext|>, ORDER - 1 times."""
    key = np.zeros(len(ids), np.int64)
    position = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
    for back in range(ORDER - 1, -1, -1):
        token = np.where(position >= back, np.roll(ids, back), end).astype(np.int64)
        key = key * vocab + token
    return key


class Order:
    """P(w | h) = max(c(hw) - D, 0) / c(h) + backoff(h) * P_lower(w | h') for one length of n-gram."""

    def __init__(self, keys, counts, vocab):
        self.keys, self.counts, self.vocab = keys, counts, vocab
        n1, n2, n3, n4 = (np.count_nonzero(counts == c) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        self.discount = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
        self.contexts, first = np.unique(keys // vocab, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        taken = np.add.reduceat(self.discount[np.minimum(counts, 3)], first)
        self.backoff = taken / self.totals

    def probability(self, keys, lower):
        """Of the last token of each key, given the probabilities of the order below."""
        found, at = lookup(self.contexts, keys // self.vocab)
        total = np.where(found, self.totals[at], 1)
        backoff = np.where(found, self.backoff[at], 1.0)
        found, at = lookup(self.keys, keys)
        count = np.where(found, self.counts[at], 0)
        return (count - self.discount[np.minimum(count, 3)]) / total + backoff * lower


def lookup(table, keys):
    """(is it there, where) for each key in a sorted table."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return table[at] == keys, at


def fit(keys, vocab):
    """Orders 1 ... ORDER; the lower ones count in how many different contexts an n-gram stands."""
    keys, counts = np.unique(keys, return_counts=True)
    orders = [Order(keys, counts, vocab)]
    for n in range(ORDER - 1, 0, -1):
        keys, counts = np.unique(keys % vocab ** n, return_counts=True)
        orders.append(Order(keys, counts, vocab))
    return orders[::-1]


def bits(orders, keys, vocab):
    """Cost of the last token of each key, in bits."""
    p = np.full(len(keys), 1.0 / vocab)
    for n, order in enumerate(orders, 1):
        p = order.probability(keys % vocab ** n, p)
    return -np.log2(p)


def measure(work):
    """Bits per byte of the held-out files, their <|endoftext|> included."""
    report = json.loads((work / "split.json").read_text())["report"]
    vocab = report["vocab_size"]
    parts = {name: dict(np.load(work / f"{name}.npz")) for name in ("library", "tests", "heldout")}
    end = int(parts["heldout"]["ids"][-1])
    keys = {name: grams(end=end, vocab=vocab, **part) for name, part in parts.items()}
    orders = fit(np.concatenate((keys["library"], keys["tests"])), vocab)
    # One context's probabilities sum to 1, or the figure means nothing.
    context = keys["heldout"][1000] // vocab * vocab
    assert abs(np.exp2(-bits(orders, context + np.arange(vocab), vocab)).sum() - 1) < 1e-9
    return float(bits(orders, keys["heldout"], vocab).sum() / report["heldout"]["bytes"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    print(f"5-gram: {measure(parser.parse_args().work):.4f} bits per byte")
