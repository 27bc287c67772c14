"""Several threads at once, and children that are forked after a model was loaded."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from codegen_fast.model import CodeGenForCausalLM

from .subject import Subject, load_demo

_POLLS, _POLL = 2400, 0.05  # a child that takes longer hangs; polls and no clock, which goes on while a process is stopped


def _sampled(model: CodeGenForCausalLM, ids: list[int], seed: int) -> torch.Tensor:
    return model.generate([ids, ids[seed + 1 :]], do_sample=True, seed=seed, num_return_sequences=2, max_new_tokens=24,
                          eos_token_id=None, pad_token_id=0)  # fmt: skip


def at_once(subject: Subject, times: int) -> str:
    """Two and eight threads generate at once, on one model and on two (the second in int8)."""
    other = load_demo("int8")
    for count in (2, 8):
        for models in ([subject.model], [subject.model, other]):
            alone = [_sampled(models[i % len(models)], subject.ids, i) for i in range(count)]
            together: list[list[torch.Tensor]] = [[] for _ in range(count)]

            def work(i: int) -> None:
                for _ in range(times):
                    together[i].append(_sampled(models[i % len(models)], subject.ids, i))

            workers = [threading.Thread(target=work, args=(i,)) for i in range(count)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            for i, results in enumerate(together):
                assert len(results) == times, f"thread {i} of {count} came to {len(results)} of {times} results"
                assert all(torch.equal(result, alone[i]) for result in results), \
                    f"thread {i} of {count} on {len(models)} models got other tokens than alone"  # fmt: skip
            subject.require_returned()
    subject.require_usable()
    return f"the tokens of each thread are those that it gets alone, {4 * times} rounds"


def fork(subject: Subject, times: int) -> str:
    """A child is forked after the model was loaded and has generated on several threads; every second time while another
    thread generates. It generates greedily, with samples and with beams, and the parent goes on."""
    torch.set_num_threads(2)
    answers: list[Callable[[], torch.Tensor]] = [
        lambda: subject.model.generate([subject.ids], max_new_tokens=24, eos_token_id=None),
        lambda: _sampled(subject.model, subject.ids, 5),
        lambda: subject.model.generate([subject.ids], num_beams=3, max_new_tokens=12),
    ]
    expected = [answer() for answer in answers]
    for i in range(times):
        with _somebody_generates(subject) if i % 2 else _nobody():
            child = os.fork()
            if child == 0:
                _answer_and_exit(answers, expected)
            status = _status(child)
        assert status == 0, {1: "the child got other tokens", 2: "the child got an error", None: "the child hangs"}.get(
            status, f"the child ended with status {status}")  # fmt: skip
        subject.require_returned()
    subject.require_usable()
    return f"{times} children got the parent's tokens, the parent its own"


def _answer_and_exit(answers: list[Callable[[], torch.Tensor]], expected: list[torch.Tensor]) -> None:
    status = 2
    try:
        status = 0 if all(torch.equal(answer(), right) for answer, right in zip(answers, expected)) else 1
    finally:
        os._exit(status)


def _status(child: int) -> int | None:
    """The exit status of a child process; None, and it is killed, if it does not end."""
    for _ in range(_POLLS):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_POLL)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@contextmanager
def _nobody() -> Iterator[None]:
    yield


@contextmanager
def _somebody_generates(subject: Subject) -> Iterator[None]:
    done, started = threading.Event(), threading.Event()

    def work() -> None:
        while not done.is_set():
            for _ in subject.model.stream([subject.ids], max_new_tokens=20, eos_token_id=None):
                started.set()

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    try:
        yield
    finally:
        done.set()
        worker.join()
