"""A save changes a folder at one moment: killed at every step that it takes on the disk, it leaves the old files or the new."""

import errno
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
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


def save(folder, state):
    config, weights, options, _ = state
    save_checkpoint(folder, config, weights, **options)


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


def folder_of_others(parent):
    out = parent / "at" / "out"
    (out / "sub").mkdir(parents=True)
    (out / "tokenizer.json").write_text("mine")
    (out / "sub" / "deep").write_text("mine too")
    return out


@pytest.fixture
def folder(tmp_path):
    return folder_of_others(tmp_path)


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


@contextmanager
def renames_fail(monkeypatch, fails):
    """fails(source, target): whether this renaming of two paths ends with an error."""
    rename = os.rename

    def checked(source, target, **options):
        if fails(Path(source), Path(target)):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", checked)
        yield


def test_an_error_while_files_are_renamed_leaves_the_old_save(folder, states, monkeypatch):
    """Every renaming of a save into the working directory fails once: the old files' out of it and the new ones' into it."""
    monkeypatch.chdir(folder)
    done = []
    for step in range(100):
        save(".", states[0])
        left = [step]

        def fails(source, target):
            left[0] -= 1
            return left[0] == -1

        with renames_fail(monkeypatch, fails):
            try:
                save(".", states[1])
            except OSError as error:
                assert str(error) == "the model was not saved in .: Invalid cross-device link"
                files = states[0][3]
            else:
                done.append(step)
                files = states[1][3]
        assert contents(folder) == files and (folder / "tokenizer.json").read_text() == "mine"
        assert not list(folder.glob(".*")) and [path.name for path in folder.parent.iterdir()] == [folder.name]
        if left[0] >= 0:
            break
    # The first two try whether files can be renamed from beside the folder: if not, they wait in it.
    assert done == [0, 1, 2 + len(states[0][3]) + len(states[1][3])]


def test_an_error_over_a_folder_that_was_no_model_leaves_it_so(folder, states, monkeypatch, recwarn):
    monkeypatch.chdir(folder)
    with renames_fail(monkeypatch, lambda source, target: target == folder / "config.json"):
        with pytest.raises(OSError, match="the model was not saved"):
            save(".", states[1])
    assert {path.name for path in folder.iterdir()} == {"sub", "tokenizer.json"} and not list(recwarn)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_old_files_that_cannot_be_put_back_are_kept(folder, states, monkeypatch):
    save(folder, states[0])
    monkeypatch.chdir(folder)
    gone = [False]

    def fails(source, target):
        """All that come after the first."""
        now, gone[0] = gone[0], gone[0] or source == folder / "config.json"
        return now

    with renames_fail(monkeypatch, fails):
        with pytest.warns(UserWarning, match=r"the old files of .*out could not be put back: they are in .*old, until the"):
            with pytest.raises(OSError, match="the model was not saved"):
                save(".", states[1])
    (kept,) = folder.parent.glob(replacement._PREFIX + "*/old/config.json")
    assert kept.read_bytes() == states[0][3]["config.json"]
    save(folder, states[1])
    assert contents(folder) == states[1][3] and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_mount_at_the_folder(folder, states, monkeypatch):
    """Nothing is renamed into it: the new files wait in the folder itself. (Without the mount: that takes privileges.)"""
    def crosses(source, target):
        return source.is_relative_to(folder) != target.is_relative_to(folder)

    for state in states:
        with renames_fail(monkeypatch, crosses), monkeypatch.context() as patched:
            patched.setattr(replacement, "_swap_names", lambda one, other: False)
            save(folder, state)
        assert contents(folder) == state[3] and not list(folder.glob(replacement._PREFIX + "*"))
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00009-of-00009.safetensors"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_folder_with_a_files_name_is_refused(folder, states, monkeypatch, name, inside):
    for path in folder.glob("[cgm]*"):
        path.unlink()
    (folder / name).mkdir()
    (folder / name / "mine").write_text("mine")
    if inside:
        monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    with pytest.raises(IsADirectoryError, match=f"the model was not saved in .*: {name} in it is a folder, where a save has"):
        save("." if inside else folder, states[1])
    assert sorted(folder.rglob("*")) == before and [path.name for path in folder.parent.iterdir()] == [folder.name]


def as_somebody(action):
    """Runs it in a process of a user who is not root, which may write anywhere. What it returns or raises, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(write, str(action()).encode())
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        return file.read()


@pytest.fixture
def somebodys(states):
    """A folder that holds the old state, of the user as whom as_somebody runs; not below pytest's, which is root's alone."""
    ops.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        folder = folder_of_others(Path(place))
        save(folder, states[0])
        give_away(folder.parent)
        if as_somebody(lambda: os.access(folder, os.W_OK)) != "True":
            pytest.skip(f"another user does not reach {place}")
        yield folder
        replacement._remove(folder.parent)  # write-protected ones too


def give_away(folder):
    if os.geteuid() == 0:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 65534, 65534)


def test_a_write_protected_folder_is_refused(somebodys, states):
    os.chmod(somebodys, 0o555)
    said = as_somebody(lambda: save(somebodys, states[1]))
    assert said == (f"PermissionError: the model was not saved in {somebodys}: it is write-protected for this user; make it "
                    f"writable (chmod u+rwx), or save to another folder")
    assert contents(somebodys) == states[0][3] and [path.name for path in somebodys.parent.iterdir()] == [somebodys.name]


def test_a_parent_that_may_not_be_written(somebodys, states):
    os.chmod(somebodys.parent, 0o555)
    said = as_somebody(lambda: save(somebodys, states[1]))
    assert said == "None" and contents(somebodys) == states[1][3] and not list(somebodys.glob(".*"))
    assert [path.name for path in somebodys.parent.iterdir()] == [somebodys.name]


def test_what_is_write_protected_is_cleaned_up(somebodys, states):
    """A write-protected folder within the model's, and what a killed save of one has left."""
    os.chmod(somebodys / "sub", 0o555)
    orphan = somebodys.parent / f"{replacement._PREFIX}killed"
    shutil.copytree(somebodys, orphan)
    give_away(orphan)
    os.chmod(orphan, 0o555)
    said = as_somebody(lambda: save(somebodys, states[1]))
    assert said == "None" and contents(somebodys) == states[1][3]
    assert [path.name for path in somebodys.parent.iterdir()] == [somebodys.name]
    assert os.stat(somebodys / "sub").st_mode & 0o777 == 0o555


def test_a_cleanup_that_fails_is_said(folder, states, monkeypatch):
    def refused(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refused)
    with pytest.warns(UserWarning, match=r"\.codegen_fast-saving-\w+, which a save has left over, could not be removed \("):
        save(folder, states[1])
    assert contents(folder) == states[1][3]
