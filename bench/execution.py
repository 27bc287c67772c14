"""Programs a second through the executor, at every level of isolation that this machine offers:

    python -m bench.execution [--programs 200] [--workers 2]

The programs do next to nothing, so that this is what running them costs: a fork, walls, streams, and an end to all of
it. Beside it stand bare interpreters that are started one after another on every worker, without any isolation.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from codegen_fast.execution import Executor, Limits
from codegen_fast.execution.worker import LEVELS, SandboxRefused, Worker

PROGRAMS = {"prints a line": "print('done')", "imports numpy": "import numpy as np\nprint(np.arange(3))"}


def sandboxed(source: str, level: str, preload: tuple[str, ...], programs: int, workers: int) -> float:
    """Programs a second; the workers' start is not counted."""
    with Executor(workers, Limits(seconds=60), preload=preload, isolation=level) as executor:
        for future in [executor.submit("import time; time.sleep(0.2)") for _ in range(workers)]:
            future.result()
        begin = time.perf_counter()
        outcomes = [future.result() for future in [executor.submit(source) for _ in range(programs)]]
        seconds = time.perf_counter() - begin
    if bad := [outcome for outcome in outcomes if outcome.status != "finished"]:
        raise RuntimeError(f"{len(bad)} of {programs} programs did not finish; the first: {bad[0]}")
    return programs / seconds


def bare(source: str, programs: int, workers: int) -> float:
    """Fresh interpreters a second, without any walls."""

    def start(_: int) -> None:
        subprocess.run([sys.executable, "-I", "-c", source], check=True, stdout=subprocess.DEVNULL)

    with ThreadPoolExecutor(workers) as pool:
        begin = time.perf_counter()
        list(pool.map(start, range(programs)))
        return programs / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m bench.execution")
    parser.add_argument("--programs", type=int, default=200, help="to run in each case")
    parser.add_argument("--workers", type=int, default=2, help="at a time")
    arguments = parser.parse_args()
    print(f"{'programs a second':34}" + "".join(f"{name:>16}" for name in PROGRAMS))
    for level in LEVELS:
        try:
            Worker(level, ()).close()
        except SandboxRefused as error:
            print(f"{level:34}  refused: {error}")
            continue
        for preload in ((), ("numpy",)):
            rates = [sandboxed(source, level, preload, arguments.programs, arguments.workers)
                     for source in PROGRAMS.values()]  # fmt: skip
            print(f"{level + (', numpy preloaded' if preload else ''):34}" + "".join(f"{rate:16.0f}" for rate in rates))
    rates = [bare(source, max(20, arguments.programs // 4), arguments.workers) for source in PROGRAMS.values()]
    print(f"{'bare interpreters, no isolation':34}" + "".join(f"{rate:16.0f}" for rate in rates))


if __name__ == "__main__":
    main()
