"""Engines that decode: each continues the same prompt, greedily, and says how long a step takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from codegen_fast.decoder import Decoder
from codegen_fast.sampling import Sampling
from codegen_fast.stepping import Row, SteppingBatch
from codegen_fast.workplace import Room, Workplace, workplace

GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, eos=())
UNTIMED = 10  # steps of ours before the clock starts: more than are enqueued ahead, so that none was computed before
STEPS = 32  # of a burst: one sample


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


class Ours:
    """codegen_fast's own loop: graph replays enqueued ahead, tokens read by the host as they come.

    ids (batch, context): the prompts. Every burst continues from their end.
    """

    def __init__(self, decoder: Decoder, ids: torch.Tensor, steps: int = STEPS) -> None:
        self.name = "codegen_fast"
        self.decoder, self.ids, self.steps = decoder, ids, steps
        self._open = ExitStack()
        batch, context = ids.shape
        self._place: Workplace = self._open.enter_context(
            workplace(decoder, Room(batch, [context] * batch, UNTIMED + steps, context + UNTIMED + steps))
        )
        assert self._place.ahead < UNTIMED, self._place.ahead
        self._prompts = [self._place.cache.new_sequence() for _ in range(batch)]
        _wait(decoder.device)
        begin = time.perf_counter()
        self.logits = decoder.prefill(self._place.cache, self._prompts, list(ids.cpu())).logits
        _wait(decoder.device)
        self.prefill_seconds = time.perf_counter() - begin

    @contextmanager
    def stream(self, steps: int) -> Iterator[Iterator[tuple[list[int], list[int]]]]:
        """(rows, tokens) of every step, for at most this many steps."""
        prompts = self.ids.cpu().numpy()
        rows = [Row(i, prompts[i], self._place.cache.fork(prompt), 0, 0) for i, prompt in enumerate(self._prompts)]
        batch = SteppingBatch(self.decoder, self._place, GREEDY, steps)
        try:
            yield _tokens(batch, rows, self.logits)
        finally:
            batch.close()

    def burst(self) -> float:
        """Seconds a step, from the arrival of one token at the host to that of the token ``steps`` later."""
        # As many more as are enqueued ahead, so that the host works until the clock stops
        most = self.decoder.config.n_positions - self.ids.shape[1]
        with self.stream(min(UNTIMED + self.steps + self._place.ahead, most)) as tokens:
            for _ in range(UNTIMED):
                next(tokens)
            begin = time.perf_counter()
            for _ in range(self.steps):
                next(tokens)
            return (time.perf_counter() - begin) / self.steps

    def first_tokens(self, count: int) -> list[int]:
        """Of the first row."""
        with self.stream(count) as tokens:
            return [step[1][0] for step in tokens]

    def close(self) -> None:
        for prompt in self._prompts:
            self._place.cache.release(prompt)
        self._open.close()
        self.decoder.kept.clear()  # what the next point needs may be more than what this one leaves


def _tokens(batch: SteppingBatch, rows: list[Row], logits: torch.Tensor) -> Iterator[tuple[list[int], list[int]]]:
    yield batch.start(rows, logits, list(range(len(rows))))
    while len(batch):
        yield batch.step()


def _cut(cache, length: int) -> None:
    """Forgets what lies behind the first ``length`` tokens; crop() means different things in different releases."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


class Eager:
    """transformers as it comes: dynamic cache, no host read of a token."""

    def __init__(self, model, ids: torch.Tensor, steps: int = STEPS) -> None:
        self.name = "transformers eager"
        self.model, self.context = model, ids.shape[1]
        self.steps = -(-steps // 4)  # it is slow, and its bursts are as long with fewer
        self._token = ids[:, :1].to(model.device)
        # One prompt, repeated: a batch of long prompts takes more memory for its scores than for its cache
        with torch.inference_mode():
            out = model(ids[:1].to(model.device), use_cache=True, logits_to_keep=1)
        self.logits, self.cache = out.logits[:, -1], out.past_key_values
        if len(ids) > 1:
            self.cache.batch_repeat_interleave(len(ids))

    @torch.inference_mode()
    def burst(self) -> float:
        _cut(self.cache, self.context)
        token = self._token
        for timed in (False, True):
            _wait(self.model.device)
            begin = time.perf_counter()
            for _ in range(self.steps if timed else 2):
                token = self._step(token)
            _wait(self.model.device)
        return (time.perf_counter() - begin) / self.steps

    @torch.inference_mode()
    def first_tokens(self, count: int) -> list[int]:
        _cut(self.cache, self.context)
        token = self.logits.argmax(-1, keepdim=True).expand(len(self._token), 1)
        tokens = [int(token[0])]
        while len(tokens) < count:
            token = self._step(token)
            tokens.append(int(token[0]))
        return tokens

    def _step(self, token: torch.Tensor) -> torch.Tensor:
        return self.model(token, past_key_values=self.cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)

    def close(self) -> None:
        self.cache = None


class Compiled:
    """transformers with a static cache and torch.compile: one graph of its own a step.

    The cache is as long as this point needs it: longer ones would make its attention slower.
    """

    def __init__(self, eager: Eager, mode: str) -> None:
        from transformers import StaticCache

        self.name = f"transformers compiled, {mode}"
        model = eager.model
        self.model, self.steps, self.context = model, STEPS, eager.context
        self._token = eager._token.clone()
        self._position = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        longest = min(model.config.n_positions, self.context + 2 * self.steps)
        self.cache = StaticCache(config=model.config, max_cache_len=longest)
        with torch.inference_mode(False), torch.no_grad():
            _cut(eager.cache, self.context)
            for i, layer in enumerate(eager.cache.layers):
                self.cache.update(layer.keys.clone(), layer.values.clone(), i)

        def step(token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            logits = model(token, past_key_values=self.cache, position_ids=position, use_cache=True).logits
            return logits[:, -1].argmax(-1, keepdim=True)

        torch.compiler.reset()
        self._step: Callable = torch.compile(step, mode=mode, fullgraph=False, dynamic=False)
        begin = time.perf_counter()
        self.burst()
        self.compile_seconds = time.perf_counter() - begin

    @torch.no_grad()
    def burst(self) -> float:
        for layer in self.cache.layers:
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length.fill_(self.context)
        self._position.fill_(self.context)
        for timed in (False, True):
            _wait(self.model.device)
            begin = time.perf_counter()
            for _ in range(self.steps if timed else 4):
                torch.compiler.cudagraph_mark_step_begin()
                self._token.copy_(self._step(self._token, self._position))
                self._position += 1
            _wait(self.model.device)
        return (time.perf_counter() - begin) / self.steps

    def close(self) -> None:
        self.cache = self._step = None
        torch.compiler.reset()


def race(engines: Sequence, bursts: int = 8) -> list[list[float]]:
    """Seconds a step of every engine: ``bursts`` bursts each, in turns A B B A."""
    samples: list[list[float]] = [[] for _ in engines]
    for engine in engines:
        engine.burst()
    order = list(enumerate(engines))
    for turn in range(bursts):
        for i, engine in order if turn % 4 in (0, 3) else order[::-1]:
            samples[i].append(engine.burst())
    return samples
