"""Files of JSON lines: read with errors that name the line, and journals that grow while a run goes on."""
from __future__ import annotations

import gzip
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..strangers import one_line, parse_json

Record = dict[str, Any]
_MOST_UNFOLDED = 100  # times a compressed file's size; HumanEval's unfolds to five times
_MOST_LINE_BYTES = 16 << 20  # a record has some kilobytes; a hole in a file, which takes no disk, has no line breaks


def read_records(path: str | os.PathLike, option: str) -> list[Record]:
    """The objects of a .jsonl or .jsonl.gz file. option: what names the file to the user, for errors.

    Raises OSError where it cannot be read, ValueError for a line that is no JSON object, and for an empty file.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or a device has no end; where a link leads is what the user meant
        raise OSError(f"{option} {path} cannot be read: it is no regular file")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            lines = _lines(file, f"{option} {path}")
            if path.suffix == ".gz":
                lines = _unfolded(lines, _MOST_UNFOLDED * path.stat().st_size)
            records = [record for _, record in _parsed(lines, f"{option} {path}")]
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OSError(f"{option} {path} cannot be read: {reason}") from None
    if not records:
        raise ValueError(f"{option} {path} is empty: expected one JSON object a line")
    return records


def require_fields(record: Record, fields: dict[str, type], where: str) -> None:
    """ValueError that names the first field that is missing or of another type."""
    for name, kind in fields.items():
        if name not in record:
            raise ValueError(f"{where} has no field {name!r}: expected {', '.join(fields)}")
        if not isinstance(record[name], kind):
            raise ValueError(f"{where} has {name}={record[name]!r:.60}, expected a {kind.__name__}")


def as_number(value: Any) -> int:
    """A sample's or a case's number, as it is. TypeError for anything else."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise TypeError(f"{value!r:.60} is no number of a sample or a case")
    return value


class Journal:
    """A file of JSON lines that grows. A line counts once its line break is written, whatever ends the process.

    What a killed process had begun to write at the end is taken off when the journal is opened again. `settle` puts
    the lines in order, so that how often a run was stopped, and who wrote what first, does not show in the file.
    """

    def __init__(self, path: Path, key: Callable[[Record], Any],
                 is_whole: Callable[[Record], bool] = lambda record: True):
        """key: identifies a record, and says its place in the settled file; is_whole: whether it has what is read of it.

        Raises ValueError for a line that is no record, OSError where the file cannot be opened.
        """
        self.path, self._key, self._is_whole = path, key, is_whole
        self.records: dict[Any, Record] = {}
        try:
            self._file = open_own(path)
            self._recover()
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "it does not fit the memory"
            raise OSError(f"{path} cannot be opened: {reason}") from None

    def _recover(self) -> None:
        with open(os.dup(self._file.fileno()), "rb") as file:
            file.seek(0)
            self._take(_parsed(self._whole_lines(_lines(file, str(self.path))), str(self.path)))

    def _whole_lines(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """All but what somebody had begun to write at the end, which is taken off the file."""
        whole = 0
        for number, line in lines:
            if not line.endswith(b"\n"):
                self._file.truncate(whole)
                return
            whole += len(line)
            yield number, line

    def _take(self, records: Iterator[tuple[int, Record]]) -> None:
        for number, record in records:
            try:
                key = self._key(record)
            except (KeyError, TypeError):
                key = None
            if key is None or not self._is_whole(record):
                raise ValueError(f"line {number} of {self.path} is no record of such a run: move the file away, or "
                                 "use another --out")
            self.records.setdefault(key, record)

    def append(self, record: Record) -> bool:
        """Writes a line at once; False: there is one with its key already, which stays."""
        key = self._key(record)
        if key in self.records:
            return False
        line = _line(record)
        try:
            if self._file.write(line) != len(line):
                raise OSError("the disk is full")
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror or error}; start again to go on from what "
                          "it holds") from None
        self.records[key] = record
        return True

    def settle(self) -> None:
        """Puts the lines in the order of their keys, each key once; beside the file first, so nothing can be lost."""
        ordered = b"".join(_line(self.records[key]) for key in sorted(self.records))
        if ordered == self.path.read_bytes():
            return
        beside = self.path.with_name(self.path.name + ".tmp")
        beside.unlink(missing_ok=True)  # a killed process's, or a link
        with open(beside, "xb") as file:
            file.write(ordered)
            file.flush()
            os.fsync(file.fileno())
        self._file.close()
        os.replace(beside, self.path)
        self._file = open_own(self.path)

    def close(self) -> None:
        self._file.close()


def open_own(path: Path) -> BinaryIO:
    """A file of a run, to read and to append to. OSError for a link, which may lead anywhere, and what is no file."""
    if path.is_symlink():
        raise OSError("it is a link")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    return open(descriptor, "ab+", buffering=0)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each, its break included. ValueError for one that no record is as large as."""
    number = 0
    while line := file.readline(_MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > _MOST_LINE_BYTES:
            raise ValueError(f"line {number} of {name} has more than {_MOST_LINE_BYTES} bytes: expected one JSON object a line")
        yield number, line


def _unfolded(lines: Iterator[tuple[int, bytes]], most: int) -> Iterator[tuple[int, bytes]]:
    """OSError where a compressed file's lines are far larger than the file: problems' texts are not."""
    total = 0
    for number, line in lines:
        total += len(line)
        if total > most:
            raise OSError(f"it unfolds to more than {_MOST_UNFOLDED} times its size")
        yield number, line


def _parsed(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[tuple[int, Record]]:
    """(line number, object) of each line that is not blank."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} of {name} is no JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} of {name} is a {type(record).__name__}, expected a JSON object")
        yield number, record


def _line(record: Record) -> bytes:
    return (json.dumps(record) + "\n").encode()
