"""A folder of which some files are replaced at one moment: a reader at any time, and whoever comes after a kill -9, finds all
old or all new ones.

The new folder is written beside the old one, with links to whatever else stands in that, and the system exchanges the two
names (Linux, renameat2). Where it cannot (another system, a mount point, a parent that may not be written, a folder that
this process stands in), files are renamed one after another: config.json goes first and comes last. An error takes them all
back. A kill -9 in that moment, of milliseconds, leaves a folder without a configuration, which no reader takes for a model,
and never a mixture; the old files then lie in .codegen_fast-saving-*/old, until the next save.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator

_PREFIX = ".codegen_fast-saving-"
_KEY = "config.json"  # a folder without it is no model
_OLD = "old"  # where old files wait until the new ones are there
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replaced_files(folder: Path, is_ours: Callable[[str], bool]) -> Iterator[Path]:
    """An empty folder to write files into, which become `folder`'s when the block ends; none do if it raises.

    is_ours: names of files that a save consists of: old ones go, and everything else in the folder stays. What a killed
    process has left behind is removed; a warning names what could not be. Raises OSError where the folder cannot be written
    (PermissionError where it is write-protected, IsADirectoryError where a folder has the name of a file to be replaced).
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists():
        _require_replaceable(folder, is_ours)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    _sweep(folder)
    beside, lock = _new_folder(folder)
    try:
        yield beside
        _sync(beside)
        if not _exchange(beside, folder, is_ours):
            _move_into(beside, folder, is_ours)
        _sync(folder)
        _sync(folder.parent)
    finally:
        os.close(lock)
        old = beside / _OLD
        if old.is_dir() and any(old.iterdir()) and not (folder / _KEY).exists():
            warnings.warn(f"the old files of {folder} could not be put back: they are in {old}, until the next save")
        else:
            _remove(beside)


def _require_replaceable(folder: Path, is_ours: Callable[[str], bool]) -> None:
    # An exchange of names asks only whether the parent may be written.
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "it is write-protected for this user; make it writable (chmod u+rwx), or save to "
                                            "another folder", str(folder))
    for entry in os.scandir(folder):
        if is_ours(entry.name) and entry.is_dir(follow_symlinks=False):
            raise IsADirectoryError(errno.EISDIR, f"{entry.name} in it is a folder, where a save has a file; move that away, "
                                                  "or save to another folder", str(folder))


def _new_folder(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder`, or in it where it cannot be there, and the lock that shows it to be in use."""
    name = _PREFIX + secrets.token_hex(8)
    beside, inside = folder.parent / name, folder / name
    try:
        lock = _make_locked(beside)
        if not folder.is_dir() or _can_be_moved(beside, inside):
            return beside, lock
        os.close(lock)
        _remove(beside)
    except OSError:
        if not folder.is_dir():
            raise
    return inside, _make_locked(inside)


def _make_locked(path: Path) -> int:
    while True:
        path.mkdir(exist_ok=True)
        lock = os.open(path, os.O_RDONLY)
        with suppress(OSError):  # a disk without locks: then nothing is swept there either
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Another save may have swept it away before the lock was held.
        if path.exists() and os.path.samestat(os.fstat(lock), os.stat(path)):
            return lock
        os.close(lock)


def _can_be_moved(beside: Path, inside: Path) -> bool:
    """Whether renaming leads from the one place to the other: into another mount, of the same disk even, it does not."""
    try:
        beside.rename(inside)
        inside.rename(beside)
    except OSError:
        return False
    return True


def _sweep(folder: Path) -> None:
    """Removes what saves that were killed have left: folders that nobody holds the lock of."""
    for path in folder.glob(_PREFIX + "*"):
        with suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    """Removes a folder with what is in it, write-protected folders too; where it cannot, a warning says so."""
    try:
        os.chmod(folder, 0o700)
        for path, names, _ in os.walk(folder):  # lists a folder after it was named here
            for name in names:
                if not os.path.islink(os.path.join(path, name)):
                    os.chmod(os.path.join(path, name), 0o700)
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass  # another save has swept it away
    except OSError as error:
        warnings.warn(f"{folder}, which a save has left over, could not be removed ({error.strerror}): remove it by hand")


def _exchange(new: Path, folder: Path, is_ours: Callable[[str], bool]) -> bool:
    """Whether `new` now stands at `folder`'s place; if not, nothing has changed there."""
    if not folder.exists():
        new.rename(folder)
        return True
    if new.parent == folder or _stands_in(folder):
        return False
    ours = {path.name for path in new.iterdir()}
    try:
        _take_over(folder, new, lambda name: is_ours(name) or name in ours)
        swapped = _swap_names(new, folder)
    except OSError:  # files that may not be linked, an owner that cannot be given: they stay where they are
        swapped = False
    if not swapped:
        for path in new.iterdir():
            if path.name not in ours:
                _remove(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return False
    for path in new.iterdir():  # now the old folder: what came into it since it was read
        if not is_ours(path.name) and not os.path.lexists(folder / path.name):
            path.rename(folder / path.name)
    return True


def _stands_in(folder: Path) -> bool:
    """Whether this process would find itself in a folder that is removed."""
    try:
        return Path(os.getcwd()).is_relative_to(folder)
    except FileNotFoundError:
        return False


def _take_over(old: Path, new: Path, leave: Callable[[str], bool]) -> None:
    """Gives `new` the owner and mode of `old`, and links to the entries of it that `leave` does not name."""
    was, now = old.stat(), new.stat()
    if (was.st_uid, was.st_gid) != (now.st_uid, now.st_gid):
        os.chown(new, was.st_uid, was.st_gid)
    for entry in os.scandir(old):
        path = new / entry.name
        if leave(entry.name) or entry.name.startswith(_PREFIX):
            continue
        if entry.is_dir(follow_symlinks=False):
            path.mkdir()
            _take_over(Path(entry.path), path, lambda name: False)
        else:
            os.link(entry.path, path, follow_symlinks=False)
    shutil.copystat(old, new)


def _swap_names(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step; False where this system or this disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _move_into(new: Path, folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Moves files one by one, between the departure of the old configuration and the arrival of the new; back on an error."""
    come = sorted((path.name for path in new.iterdir()), key=lambda name: name == _KEY)
    go = sorted((path.name for path in folder.iterdir() if is_ours(path.name) or path.name in come),
                key=lambda name: name != _KEY)
    old = new / _OLD
    old.mkdir()
    moves = [(folder / name, old / name) for name in go] + [(new / name, folder / name) for name in come]
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if not os.path.lexists(source):  # it was there: it has been moved
                target.rename(source)
        raise


def _sync(folder: Path) -> None:
    """Has the disk know a folder's entries."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some disks have no such request
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
