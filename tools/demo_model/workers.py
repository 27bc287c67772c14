"""Gradients of a batch from single-threaded processes that take its micro-batches as they get free.

Two threads in one process wait for each other at the end of every product: measured on 2 cores that a test run shared, that
fell from 10,000 tokens/s to 1,200. Processes that meet once a step use whatever share of each core they get.
"""
import queue
import signal

import torch
import torch.multiprocessing as mp

PATIENCE = 20  # seconds between two looks at whether the other side lives


def work(model, grads, tasks, losses):
    """A worker: ids (rows, length + 1) from `tasks`, their gradient onto the shared `grads`, their loss to `losses`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the trainer decides when to stop
    torch.set_num_threads(1)
    for p, grad in zip(model.parameters(), grads):
        p.grad = grad
    forward = torch.compile(model, dynamic=False)
    while mp.parent_process().is_alive():
        try:
            task = tasks.get(timeout=PATIENCE)
        except queue.Empty:
            continue
        if task is None:
            return
        ids, weight = task
        ids = torch.from_numpy(ids)
        with torch.autocast("cpu", torch.bfloat16):
            loss = forward(ids[:, :-1], ids[:, 1:]) * weight
        loss.backward()
        losses.put(loss.item())


class Workers:
    """`count` processes that share the model's parameters."""

    def __init__(self, model, count):
        context = mp.get_context("spawn")
        self.model = model.share_memory()
        self.grads = [[torch.zeros_like(p).share_memory_() for p in model.parameters()] for _ in range(count)]
        self.tasks, self.losses = context.Queue(), context.Queue()
        self.processes = [context.Process(target=work, args=(model, g, self.tasks, self.losses), daemon=True)
                          for g in self.grads]
        for process in self.processes:
            process.start()

    def close(self):
        """Let the processes end."""
        for _ in self.processes:
            self.tasks.put(None)

    def gradient(self, batches):
        """Mean loss over equal micro-batches (numpy int64); leaves its gradient in the parameters' .grad."""
        for ids in batches:
            self.tasks.put((ids, 1 / len(batches)))
        total, due = 0.0, len(batches)
        while due:
            try:
                total += self.losses.get(timeout=PATIENCE)
                due -= 1
            except queue.Empty:
                if not all(p.is_alive() for p in self.processes):
                    raise RuntimeError("a training worker died; run the command again to go on from the last checkpoint")
        for i, p in enumerate(self.model.parameters()):
            p.grad = self.grads[0][i].clone()
            for grads in self.grads[1:]:
                p.grad += grads[i]
            for grads in self.grads:
                grads[i].zero_()
        return total
