"""How many rows of a call run at once: as many as keep the machine busy and fit its memory."""
from __future__ import annotations

import torch

from .. import ops
from ..config import CodeGenConfig
from ..memory import available_bytes, cache_bytes, gigabytes
from ..workplace import rows_bucket

# More rows at once bring little: the products are then bound by arithmetic.
_ENOUGH_ROWS = {"cpu": 64, "cuda": 256}
_SHARE = 0.8  # of the memory that is free: other programs take some as well


def rows_at_once(config: CodeGenConfig, dtype: torch.dtype, prompt_lens: list[int], samples: int, steps: int,
                 device: torch.device, *, limit: int | None, together: bool, kept: int = 0) -> int:
    """The number of rows that step together, of len(prompt_lens) * samples; results do not depend on it.

    limit: the caller's, or None. together: all rows must, because somebody looks at them side by side. kept: bytes that
    earlier calls have left for later ones; they count as free.
    Raises OSError with both numbers if one row (or all that must run together) cannot even begin in the memory that is
    free, ValueError if together and limit contradict each other.
    """
    rows = len(prompt_lens) * samples
    if together and limit is not None and limit < rows:
        raise ValueError(f"max_batch_size={limit} is less than the {rows} rows of this call, which must run together "
                         "because callbacks, a streamer, scores or past_key_values see all of them at every step")
    wanted = rows if together else min(rows, limit or _ENOUGH_ROWS[ops.backend(device)])
    available = available_bytes(device)
    if available is None:
        return wanted
    available += kept
    page_size = ops.kv_page_size(device.type)
    page = cache_bytes(config, dtype, page_size)
    work = 2 * 4 * config.vocab_size + ops.sample_workspace(1, config.vocab_size, device.type)
    # A wave may consist of any of the prompts, the longest included, and begin in the middle of one's samples.
    pages = sorted((-(-n // page_size) for n in prompt_lens), reverse=True)

    def needed(count: int, new_tokens: int) -> int:
        prompts = sum(pages[:-(-count // samples) + (samples > 1)])
        buffers = rows_bucket(count) if ops.backend(device) == "cuda" else count
        return (prompts + count * (-(-new_tokens // page_size) + 2)) * page + buffers * work

    least = rows if together else 1
    if needed(least, 1) > available:
        hint = "ask for fewer rows or shorter prompts at a time" if together else "shorten the prompt"
        who = "1 row needs" if least == 1 else f"{least} rows need"
        raise OSError(f"{who} {gigabytes(needed(least, 1))} to begin with and {gigabytes(available)} are "
                      f"free: {hint}")
    if together:
        return rows
    while wanted > 1 and needed(wanted, steps) > _SHARE * available:
        wanted -= max(1, wanted // 8)
    return wanted
