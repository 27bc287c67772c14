"""Zips as torch.save writes them: entries missing, doubled, renamed, compressed; numbers of the directory that lie."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from functools import cache
from random import Random

from .names import PATHS
from .pickles import mutate_pickle
from .plain import mutate_bytes

_END, _CENTRAL, _LOCAL, _END64 = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04", b"PK\x06\x06"
# Where numbers stand behind each signature, and how wide they are.
_FIELDS = {
    _LOCAL: ((4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)),
    _CENTRAL: ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (38, 4), (42, 4)),
    _END: ((4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)),
    _END64: ((4, 8), (24, 8), (32, 8), (40, 8), (48, 8)),
}
_BOMB_BYTES = 256 << 20  # of zeros, that a few hundred kilobytes unfold to
_BOMB = -1


def mutate_archive(rng: Random, data: bytes) -> bytes:
    match rng.randrange(10):
        case 0 | 1 | 2 | 3:
            return _mutate_entries(rng, data, only_pickle=True)
        case 4 | 5:
            return _mutate_entries(rng, data, only_pickle=False)
        case 6 | 7 | 8:
            return _mutate_numbers(rng, data)
        case _:
            return rng.choice((mutate_bytes(rng, data), data + b"x" * 100, b"x" * 4 + data, data[:rng.randrange(len(data))],
                               data + data))


def _mutate_entries(rng: Random, data: bytes, *, only_pickle: bool) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry), zipfile.ZIP_STORED) for entry in archive.infolist()]
    at = next(i for i, entry in enumerate(entries) if entry[0].endswith("data.pkl"))
    name, content, method = entries[at]
    if only_pickle:
        entries[at] = (name, mutate_pickle(rng, content), method)
    else:
        for _ in range(rng.choice((1, 1, 2))):
            _change_entry(rng, entries)
    return write_archive(entries)


def _change_entry(rng: Random, entries: list[tuple[str, bytes, int]]) -> None:
    at = rng.randrange(len(entries))
    name, content, method = entries[at]
    folder, _, base = name.rpartition("/")
    match rng.randrange(9):
        case 0 if len(entries) > 1:
            del entries[at]
        case 1:
            entries.append((name, mutate_bytes(rng, content), method))  # the name twice
        case 2:
            entries[at] = (rng.choice((f"{folder}/../{base}", f"{folder}/{rng.choice(PATHS)}", base, f"{folder}/data/../{base}",
                                       f"{folder}/{base}/", f"other/{base}", f"{folder}/code/x.py", "")), content, method)
        case 3:
            entries[at] = (name, content, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)))
        case 4:
            entries[at] = (name, rng.choice((b"", content[:-1], content * 2, content + b"\x00" * 64, mutate_bytes(rng, content))),
                           method)
        case 5:
            other = rng.randrange(len(entries))
            entries[at], entries[other] = (name, entries[other][1], method), (entries[other][0], content, method)
        case 6:
            entries.append((f"{folder}/{rng.choice(('byteorder', 'version', '.format_version', 'constants.pkl', 'data/99'))}",
                            rng.choice((b"big", b"little", b"9999", b"", b"\xff", content)), method))
        case 7:
            entries[at] = (name, b"", _BOMB)
        case 8:
            rng.shuffle(entries)


def write_archive(entries: list[tuple[str, bytes, int]]) -> bytes:
    """(name, content, method) of every entry; the method _BOMB: zeros, deflated."""
    bombs = [name for name, _, method in entries if method == _BOMB]
    stream = io.BytesIO(_bomb(bombs[0]) if bombs else b"")
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "a") as archive:
        warnings.simplefilter("ignore")  # a name twice is meant
        for name, content, method in entries:
            if method != _BOMB:
                archive.writestr(name, content, method)
    return stream.getvalue()


@cache
def _bomb(name: str) -> bytes:
    """An archive of one entry. Deflating it takes a second."""
    stream = io.BytesIO()
    info = zipfile.ZipInfo(name)
    info.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w") as archive, archive.open(info, "w") as file:
        for _ in range(_BOMB_BYTES >> 20):
            file.write(b"\x00" * (1 << 20))
    return stream.getvalue()


def _mutate_numbers(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        signature = rng.choice((_LOCAL, _CENTRAL, _CENTRAL, _END, _END64))
        places = [at for at in range(len(data) - 3) if data[at] == 0x50 and data[at:at + 4] == signature]
        if not places:
            continue
        offset, width = rng.choice(_FIELDS[signature])
        at = rng.choice(places) + offset
        if at + width > len(data):
            continue
        now = int.from_bytes(data[at:at + width], "little")
        most = 2**(8 * width) - 1
        number = rng.choice((0, 1, now + 1, now - 1, now * 2, most, most // 2, most - 1, now + 64, len(data), 8, 99)) & most
        changed[at:at + width] = struct.pack("<Q", number)[:width]
    return bytes(changed)
