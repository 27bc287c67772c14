"""The process of one engine: ``python -m bench.cpu.worker NAME FOLDER THREADS WORK``.

Requests and replies are lines of JSON on standard input and what was standard output; whatever the engine's libraries
print goes to standard error. A reply has "error" or "unsupported" where there is nothing else to say.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, TextIO


class EngineWorker:
    """Answers requests with an engine of the catalogue."""

    def __init__(self, name: str, folder: str, threads: str, work: str) -> None:
        from bench.cpu.catalogue import ENGINES

        self._entry, self._folder, self._threads, self._work = ENGINES[name], Path(folder), int(threads), Path(work)
        self._engine: Any = None

    def load(self) -> dict[str, Any]:
        begin = time.perf_counter()
        if "torch" in self._entry.needs and self._entry.module in ("fast", "huggingface"):
            importlib.import_module("torch")
        torch_seconds = time.perf_counter() - begin
        module = importlib.import_module(f"bench.cpu.engines.{self._entry.module}")
        imported = time.perf_counter()
        self._engine = getattr(module, self._entry.engine)(self._folder, self._entry.kind, self._threads, self._work)
        return {
            "seconds": time.perf_counter() - imported,
            "import_seconds": imported - begin,
            "torch_seconds": torch_seconds,
            "settings": self._engine.settings,
            "versions": self._engine.versions,
        }

    def generate(self, rows: int, context: int, steps: int, vocab: int, seed: int) -> dict[str, Any]:
        """Prompts of random tokens, the same for every engine that is given this seed."""
        draw = random.Random(f"{seed} {rows} {context}")
        prompts = [[draw.randrange(vocab) for _ in range(context)] for _ in range(rows)]
        return {"seconds": self._engine.generate(prompts, steps)}

    def logits(self, ids: list[int], phase: str, path: str) -> dict[str, Any]:
        import numpy as np

        method = self._engine.logits if phase == "prefill" else self._engine.step_logits
        np.save(path, method(ids))
        return {}

    def best_tokens(self, prompts: list[list[int]]) -> dict[str, Any]:
        return {"tokens": self._engine.best_tokens(prompts)}

    def stages(self, context: int, rows: int, steps: int, vocab: int) -> dict[str, Any]:
        from bench.cpu.stages import measure

        return measure(self._engine, context, rows, steps, vocab)


def targets() -> dict[str, Any]:
    """What a worker can be besides an engine."""
    from bench.cpu.ceiling import Ceiling
    from bench.cpu.kernels import Kernels

    return {"ceiling": Ceiling, "kernels": Kernels}


def main() -> None:
    # Libraries print where they like: the pipe is ours alone.
    replies: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, *arguments = sys.argv[1:]
    target = targets()[name](*arguments) if name in ("ceiling", "kernels") else EngineWorker(name, *arguments)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(target, request.pop("do"))(**request)
        except NotImplementedError as error:
            reply = {"unsupported": str(error)}
        except Exception as error:  # an engine's failure is a result
            unsupported = type(error).__name__ == "Unsupported"
            text = " ".join(str(error).split())
            reply = {"unsupported": text} if unsupported else {"error": f"{type(error).__name__}: {text}"[:500]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
