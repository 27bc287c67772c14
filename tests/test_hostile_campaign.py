"""The harness that damages files (reliability/hostile): a minute of it, inputs that it has kept, and what it takes for right."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from codegen_fast.memory import named_where_full

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from reliability.hostile import oracle  # noqa: E402

# This checkout comes last on the path: its package has no compiled part where another one is installed.
_CAMPAIGN = ("import sys; sys.path.append(sys.argv.pop(1)); sys.argv[0] = 'hostile'; "
             "from reliability.hostile.__main__ import main; sys.exit(main())")


def test_a_refusal_for_want_of_memory_is_none(tmp_path):
    """What a file made us want is not bounded by it where only the system's limit stopped it."""
    with pytest.raises(OSError) as caught, named_where_full(torch.device("cpu")):
        raise MemoryError
    assert oracle.complaint(caught.value, tmp_path) == "it wanted more memory than files of this size may"


def test_the_harness_knows_code_that_a_library_makes_while_it_is_imported(tmp_path):
    """A NamedTuple compiles texts, whenever torch first needs the module that has it; nobody else's code may."""
    (tmp_path / "outside").mkdir()
    source = (
        "import sys; sys.path.append(sys.argv[1])\n"
        "from pathlib import Path\n"
        "from reliability.hostile import watch\n"
        "looks = watch.Watch(Path(sys.argv[2]) / 'outside')\n"
        "def seen(call):\n"
        "    looks.begin((), (), 0)\n"
        "    call()\n"
        "    return looks.end()\n"
        "def lazy():\n"
        "    sys.modules.pop('sched', None)\n"
        "    import sched\n"
        "assert seen(lazy) == [], 'an import of a library'\n"
        "assert seen(lambda: compile('1', '<string>', 'eval')) != []\n")
    subprocess.run([sys.executable, "-P", "-c", source, str(ROOT), str(tmp_path)], check=True, timeout=600,
                   env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


def test_inputs_that_were_worth_keeping():
    """What failed once, or reached more of the package than smaller inputs: grown by coverage, kept, and read again (15 s)."""
    corpus = Path(__file__).parent / "hostile_corpus"
    script = "import sys; sys.path.append(sys.argv.pop(1)); from reliability.hostile.corpus import main; sys.exit(main())"
    ended = subprocess.run([sys.executable, "-P", "-c", script, str(ROOT), str(corpus)], capture_output=True, text=True,
                           timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert sum(path.stat().st_size for path in corpus.rglob("*") if path.is_file()) < 100_000


def test_sixty_seconds_of_damaged_files():
    """Every target in turn, with mutations of seed 0; what fails is told with the number that repeats it."""
    ended = subprocess.run([sys.executable, "-P", "-c", _CAMPAIGN, str(ROOT), "--seconds", "60", "--guided-share", "0"],
                           capture_output=True, text=True, timeout=1200)
    told = "\n".join(line for line in ended.stderr.splitlines() if "hostile files:" not in line)
    assert ended.returncode == 0, ended.stdout + told
    assert int(ended.stdout.split()[0].replace(",", "")) > 500  # thousands on a machine of its own
