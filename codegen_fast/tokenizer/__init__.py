"""The CodeGen tokenizer over the `tokenizers` library: text <-> token ids, batches padded on the left.

    codegen.py   CodeGenTokenizer and AutoTokenizer, what users see
    batch.py     BatchEncoding, and how long the rows of a batch become (truncation, padding)
    special.py   the named special tokens (bos, eos, unk, pad) and their setters
    files.py     tokenizer folders: every layout that CodeGen checkpoints come in is read, one is written
"""

from .batch import BatchEncoding
from .codegen import AutoTokenizer, CodeGenTokenizer

__all__ = ["AutoTokenizer", "BatchEncoding", "CodeGenTokenizer"]
