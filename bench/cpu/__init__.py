"""Benchmarks of the CPU backend and of the other engines that run CodeGen on a CPU: ``python -m bench.cpu``.

__main__.py     the command
catalogue.py    every engine, and the interpreter that has it
engines/        what an engine does: load, prefill, decode, logits
formats/        a checkpoint in the formats of the peers
worker.py       the process of one engine; pool.py, the other end of its pipes
ceiling.py      the read bandwidth, and the share of it that a figure is
rounds.py       engines in turns, A B B A, with the ceiling in every round
parts.py        what is measured of engines; kernels.py, stages.py: of the ops
report.py       medians and ratios of the raw samples; gates.py, what must hold
tables.py, plots.py, results.py    terminal and README, figures, JSON
"""
