"""A save changes a folder at one moment: killed at every step that it takes on the disk, it leaves the old files or the new."""

import fcntl
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import make_checkpoint
from loaded_weights import load

from codegen_fast import ops
from codegen_fast.config import CodeGenConfig
from codegen_fast.weights import replacement, save_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="exchanges two folders by Linux's renameat2")

OURS = ("config.json", "generation_config.json", "model")
_ON_DISK = ("open", "os.", "shutil.", "ctypes.call_function")  # audit events; renameat2 lies between two of them


def contents(folder):
    """The model's files and their bytes; None where there is no config.json, which no reader takes for a model."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith(OURS)}
    return files if "config.json" in files else None


@pytest.fixture
def states(tmp_path):
    """Two saves: (config, weights, options of save_checkpoint) and their files. The first is sharded, the second not."""
    make_checkpoint(tmp_path / "in", n_layer=1)
    config = CodeGenConfig.from_folder(tmp_path / "in")
    made = []
    for name, weights, options in [("old", load(tmp_path / "in", torch.float16), {"max_shard_bytes": 60_000}),
                                   ("new", load(tmp_path / "in", quantization="int8"), {})]:
        save_checkpoint(tmp_path / name, config, weights, {"top_k": len(made) + 5}, **options)
        made.append((config, weights, {"generation_config": {"top_k": len(made) + 5}, **options}, contents(tmp_path / name)))
    assert made[0][3].keys() != made[1][3].keys()
    return made


def save_killed_at(step, folder, state):
    """Saves in a process that kills itself before its `step`th request to the disk; whether it came to its end."""
    config, weights, options, _ = state
    child = os.fork()
    if child == 0:
        left = [step]

        def count(event, _):
            if event.startswith(_ON_DISK):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            save_checkpoint(folder, config, weights, **options)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status)


def saves_until_whole(folder, states, *, allow_none=False):
    """Kills at step 1, 2, ... of saving the new state over the old. Returns how often each was left."""
    old, new = states
    left = {"old": 0, "new": 0, "none": 0}
    ops.set_num_threads(1)
    for step in range(1, 2000):
        save_checkpoint(folder, old[0], old[1], **old[2])
        done = save_killed_at(step, folder, new)
        found = contents(folder)
        state = "none" if found is None else "old" if found == old[3] else "new" if found == new[3] else None
        assert state is not None, f"a mixture after {step} steps: {sorted(found)}"
        assert allow_none or state != "none"
        left[state] += 1
        assert (folder / "tokenizer.json").read_text() == "mine" and (folder / "sub" / "deep").read_text() == "mine too"
        if done:
            assert state == "new"
            return left
    raise AssertionError("the save never came to its end")


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "at" / "out"
    (out / "sub").mkdir(parents=True)
    (out / "tokenizer.json").write_text("mine")
    (out / "sub" / "deep").write_text("mine too")
    return out


def test_a_kill_at_every_step_leaves_the_old_save_or_the_new(folder, states):
    left = saves_until_whole(folder, states)
    assert left["old"] > 20 and left["new"] > 3
    # Nothing of the killed ones is left, and what else was there is the same file still.
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_an_exchange_of_names_a_kill_never_leaves_a_mixture(folder, states, monkeypatch):
    monkeypatch.setattr(replacement, "_swap_names", lambda one, other: False)
    left = saves_until_whole(folder, states, allow_none=True)
    assert left["old"] > 20 and left["new"] > 3
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_first_save_is_there_whole_or_not_at_all(tmp_path, states):
    ops.set_num_threads(1)
    for step in range(1, 2000):
        folder = tmp_path / f"first-{step}"
        done = save_killed_at(step, folder, states[1])
        assert contents(folder) == states[1][3] if folder.exists() else not done
        if done:
            break
    assert step > 10


def test_what_the_process_stands_in_stays_under_its_feet(folder, states, monkeypatch):
    monkeypatch.chdir(folder)
    before = os.stat(".").st_ino
    config, weights, options, files = states[1]
    save_checkpoint(".", config, weights, **options)
    assert os.stat(folder).st_ino == os.stat(".").st_ino == before and contents(Path()) == files


def test_other_files_stay_the_same_files(folder, states):
    (folder / "link").symlink_to("tokenizer.json")
    (folder / "pytorch_model.bin").write_text("another format's")
    os.chmod(folder, 0o750)
    before = {path.name: path.lstat().st_ino for path in folder.iterdir() if not path.is_dir()}
    for config, weights, options, files in states:
        save_checkpoint(folder, config, weights, **options)
        assert contents(folder) == files
        assert {name: (folder / name).lstat().st_ino for name in before} == before
        assert (folder / "link").is_symlink() and os.stat(folder).st_mode & 0o777 == 0o750
    umask = os.umask(0o027)
    try:
        save_checkpoint(folder.parent / "fresh", config, weights)
    finally:
        os.umask(umask)
    assert os.stat(folder.parent / "fresh").st_mode & 0o777 == 0o750


def test_a_link_to_a_folder_is_followed(folder, states):
    (folder.parent / "name").symlink_to(folder)
    config, weights, options, files = states[1]
    save_checkpoint(folder.parent / "name", config, weights, **options)
    assert (folder.parent / "name").is_symlink() and contents(folder) == files


def test_a_save_that_goes_on_is_not_swept_away(folder, states):
    config, weights, options, files = states[1]
    beside = folder.parent / f"{replacement._PREFIX}of-another"
    beside.mkdir()
    lock = os.open(beside, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    save_checkpoint(folder, config, weights, **options)
    assert beside.exists()
    os.close(lock)
    save_checkpoint(folder, config, weights, **options)
    assert not beside.exists() and contents(folder) == files


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_may_not_be_written(folder, states):
    config, weights, options, files = states[1]
    os.chmod(folder.parent, 0o555)
    try:
        save_checkpoint(folder, config, weights, **options)
    finally:
        os.chmod(folder.parent, 0o755)
    assert contents(folder) == files and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_no_place_beside_the_folder(folder, states, monkeypatch):
    """As where the parent may not be written: the new files wait in the folder itself."""
    make = Path.mkdir

    def only_inside(self, *args, **options):
        if self.parent == folder.parent and self != folder:
            raise PermissionError(13, "Permission denied", str(self))
        return make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", only_inside)
    config, weights, options, files = states[1]
    save_checkpoint(folder, config, weights, **options)
    assert contents(folder) == files and not list(folder.glob(replacement._PREFIX + "*"))
