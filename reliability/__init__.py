"""What the project survives: every module is a command that tries something, writes what came out to reliability/results
and renders its part of docs/reliability.md.

Stands above the package as tests and benchmarks do: it imports downwards, and nothing imports it.
"""
