"""The tensors of a checkpoint by name, over files in each of Hugging Face's four layouts.

Opening reads headers only; rows() reads what it gives, so a checkpoint larger than memory can be read. Nothing in a
pickle runs: torch.load takes weights_only=True.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Mapping, Protocol

import torch

from ..config import CodeGenConfig
from ..strangers import is_there, one_line, read_json_object, regular_file
from . import layout
from .bin_places import places_of_mapped
from .file_tensors import CheckpointFile, StoredTensor, span_of
from .pickles import BrokenPickle, first_foreign_name
from .safetensors_reader import read_header

_INDEX_SUFFIX = ".index.json"
_MOST_SHARED = 8  # tensors that hold the same values, on an average: CodeGen has two at most
_MOST_GAPS = 8  # elements that a tensor reaches over, for each of its own: a part of a fused matrix has three
_LONGEST_NAME = 128  # of a shard: messages name two
_LFS_POINTER = b"version https://git-lfs"
# The magic number that opens a file of torch.save before 1.6: a pickle, not a zip.
_OLD_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class TensorSource(Protocol):
    """Tensors by name."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype | str: ...  # a str where torch has no such type

    def get(self, name: str) -> torch.Tensor: ...

    # Of a matrix, which may have a leading dimension of 1; valid until the second call after this one.
    def rows(self, name: str, start: int, count: int) -> torch.Tensor: ...

    # The bytes of a contiguous tensor from `start` on, into a uint8 tensor.
    def read_into(self, name: str, out: torch.Tensor, start: int) -> None: ...

    def describe(self, name: str | None = None) -> str: ...  # for errors: the source, or the file that holds name


def open_checkpoint(folder: str | Path) -> TensorSource:
    """Opens the weights in a folder: safetensors if it has them, else .bin; whole or in shards.

    Raises OSError for files that are missing, cut off or no checkpoint, ValueError where they contradict each other
    or hold anything but tensors.
    """
    folder = Path(folder)
    for whole, open_file in (("model.safetensors", _open_safetensors), ("pytorch_model.bin", _open_bin)):
        if is_there(folder / whole):
            return open_file(folder / whole)
        if is_there(folder / (whole + _INDEX_SUFFIX)):
            return _open_shards(folder / (whole + _INDEX_SUFFIX), open_file)
    others = [n for n in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.ckpt.index")
              if (folder / n).exists()]
    instead = f"; its {others[0]} is another framework's" if others else ""
    raise OSError(f"{folder} holds no weights{instead}; expected model.safetensors, pytorch_model.bin, or the "
                  f"{_INDEX_SUFFIX} of one of them")


def checkpoint_dtype(source: TensorSource, config: CodeGenConfig) -> torch.dtype:
    """What dtype="auto" means: the type in config.json, else that of the checkpoint's embedding."""
    if config.dtype is not None:
        return config.dtype
    found = source.dtype(layout.EMBEDDING) if layout.EMBEDDING in source.names() else torch.float32
    # Any other type is refused, with the tensor's name, when the weights are read.
    return found if found in layout.FLOAT_DTYPES else torch.float32


class StateDictSource:
    """Tensors that are in memory already: a loaded model's state_dict()."""

    def __init__(self, state_dict: Mapping[str, torch.Tensor], where: str = "the state dict") -> None:
        self._tensors = dict(state_dict)
        self._where = where
        _check_tensors(self._tensors, where)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors[name].dtype

    def get(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()

    def rows(self, name: str, start: int, count: int) -> torch.Tensor:
        matrix = self.get(name)
        return (matrix[0] if matrix.dim() == 3 else matrix)[start:start + count]

    def read_into(self, name: str, out: torch.Tensor, start: int) -> None:
        out.copy_(self.get(name).reshape(-1).view(torch.uint8)[start:start + out.numel()])

    def describe(self, name: str | None = None) -> str:
        return self._where


class _File:
    """Tensors in one file."""

    def __init__(self, file: CheckpointFile, places: dict[str, StoredTensor]) -> None:
        self._file, self._places = file, places

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def dtype(self, name: str) -> torch.dtype | str:
        return self._places[name].dtype

    def get(self, name: str) -> torch.Tensor:
        return self._file.whole(self._places[name])

    def rows(self, name: str, start: int, count: int) -> torch.Tensor:
        return self._file.rows(self._places[name], start, count)

    def read_into(self, name: str, out: torch.Tensor, start: int) -> None:
        self._file.read_into(out, self._places[name].offset + start)

    def describe(self, name: str | None = None) -> str:
        return str(self._file.path)


def _open_safetensors(path: Path) -> TensorSource:
    file = CheckpointFile(path, _check_size(path))
    return _File(file, read_header(file))


def _open_bin(path: Path) -> TensorSource:
    """A .bin file of torch.save."""
    real = _check_bin(path)
    file = CheckpointFile(path, real)
    # Mapped, so that nothing is read but the pickle; the values are read from the file (file_tensors.py).
    content = _unpickled(path, real, mmap=True)
    _check_backed(content, file.size, path)
    places = places_of_mapped(content, file)
    if places is None:
        # Mapped values would end the process where somebody shortens the file. So the file is in memory, beside the model.
        content = _unpickled(path, real, mmap=False)
    file.require_unchanged()
    return StateDictSource(content, str(path)) if places is None else _File(file, places)


def _unpickled(path: Path, real: Path, *, mmap: bool) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(real, mmap=mmap, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        # torch's message tells at length how to switch the protection off; its last sentence names the culprit.
        culprit = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
        raise ValueError(f"{path} holds something that is not a tensor, and nothing in it was run "
                         f"({one_line(culprit, 80) or 'its pickle is broken'}); get the weights as safetensors") from None
    except Exception as error:  # a broken pickle can bring about any
        raise OSError(f"{path} is cut off or damaged ({type(error).__name__}: {one_line(error)}); "
                      f"download it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors by name")
    _check_tensors(content, str(path))
    return content


class _Shards:
    """Several files that hold one checkpoint between them."""

    def __init__(self, index: Path, file_of: dict[str, TensorSource]) -> None:
        self._index = index
        self._file_of = file_of

    def names(self) -> list[str]:
        return list(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file_of[name].shape(name)

    def dtype(self, name: str) -> torch.dtype | str:
        return self._file_of[name].dtype(name)

    def get(self, name: str) -> torch.Tensor:
        return self._file_of[name].get(name)

    def rows(self, name: str, start: int, count: int) -> torch.Tensor:
        return self._file_of[name].rows(name, start, count)

    def read_into(self, name: str, out: torch.Tensor, start: int) -> None:
        self._file_of[name].read_into(name, out, start)

    def describe(self, name: str | None = None) -> str:
        return str(self._index) if name is None else self._file_of[name].describe(name)


def _open_shards(index: Path, open_file: Callable[[Path], TensorSource]) -> _Shards:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index} has no weight_map of tensor names to file names; download it again")
    paths = {file: _shard_path(index, file) for file in sorted(set(weight_map.values()))}
    file_of: dict[str, TensorSource] = {}
    for file, path in paths.items():
        shard = open_file(path)
        for name in shard.names():
            if name in file_of:
                raise ValueError(f"tensor {name!r:.80} is in two shards, {file_of[name].describe()} and {path}; "
                                 f"expected it in one")
            if name not in weight_map and not layout.is_buffer(name):
                raise ValueError(f"{path} holds tensor {name!r:.80}, which {index.name} does not name; the files are of "
                                 f"different checkpoints")
            file_of[name] = shard
    for name, file in weight_map.items():
        if name not in file_of:
            raise ValueError(f"{index} says that tensor {name!r:.80} is in {file}, which does not hold it; download "
                             f"the files again")
        if file_of[name].describe() != str(paths[file]):
            raise ValueError(f"{index} says that tensor {name!r:.80} is in {file}; it is in {file_of[name].describe()}")
    return _Shards(index, file_of)


def _shard_path(index: Path, file: str) -> Path:
    """The path of a shard that an index names. Only files of the index's own folder are opened."""
    is_name = Path(file).name == file and file not in ("", ".", "..") and "\\" not in file and file.isprintable()
    if not is_name or len(file) > _LONGEST_NAME:
        raise ValueError(f"{index} names the shard {file!r:.80}; expected the name of a file in the same folder")
    path = index.parent / file
    try:
        there = is_there(path)
    except OSError:  # a name that no file can have
        there = False
    if not there:
        raise OSError(f"{index.parent} has no {file!r:.80}, which {index.name} names; download it")
    return path


def _check_size(path: Path) -> Path:
    """The file that path leads to."""
    real = regular_file(path)
    if real.stat().st_size == 0:
        raise OSError(f"{path} is empty (0 bytes); download it again")
    if _first_bytes(real, len(_LFS_POINTER)) == _LFS_POINTER:
        raise OSError(f"{path} is only a Git LFS pointer to the weights; run `git lfs pull` in its folder")
    return real


def _check_bin(path: Path) -> Path:
    """The file that path leads to.

    Refuses what torch.load cannot map (it reports these badly, and reads compressed records as if they were not), and
    pickles that name anything but tensors: nothing of them would run, but torch also takes objects that only cost memory.
    """
    real = _check_size(path)
    start = _first_bytes(real, len(_OLD_TORCH_MAGIC))
    if start == _OLD_TORCH_MAGIC:
        raise OSError(f"{path} is in torch's format from before version 1.6, which cannot be memory-mapped; convert it "
                      f"once with torch.save(torch.load(path, weights_only=True), path)")
    if not start.startswith(b"PK"):
        raise OSError(f"{path} is not a checkpoint of torch.save (it begins with {start[:4]!r}); download it again")
    try:
        with zipfile.ZipFile(real) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            # torch makes room for what the directory says that an entry unfolds to before it reads it.
            lying = [entry for entry in entries if stored and entry.file_size != entry.compress_size]
            content = archive.read(pickles[0]) if len(pickles) == 1 and stored else b""
    except Exception as error:  # a lying directory can bring about any: of zipfile, of struct, of the system
        raise OSError(f"{path} is cut off or damaged ({type(error).__name__}: {one_line(error)}); "
                      f"download it again") from None
    if not stored:
        raise OSError(f"{path} is a compressed zip, which cannot be memory-mapped; write it with torch.save")
    if lying:
        raise OSError(f"{path} is cut off or damaged (its entry {lying[0].filename!r:.80} has {lying[0].compress_size} bytes and "
                      f"would unfold to {lying[0].file_size}); download it again")
    if len(pickles) != 1:
        raise OSError(f"{path} has {len(pickles)} entries named data.pkl; expected one, as torch.save writes it")
    try:
        culprit = first_foreign_name(content)
    except BrokenPickle as error:
        raise OSError(f"{path} is cut off or damaged ({one_line(error)}); download it again") from None
    if culprit is not None:
        raise ValueError(f"{path} holds something that is not a tensor, and nothing in it was run ({culprit!r:.80}); "
                         f"get the weights as safetensors")
    return real


def _check_backed(tensors: Mapping[str, torch.Tensor], file_bytes: int, path: Path) -> None:
    """Tensors may share values (tied weights do), but a small file must not stand for a large model."""
    for name, tensor in tensors.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(f"tensor {name!r:.80} of {path} has shape {tuple(tensor.shape)!r:.80} over "
                             f"{tensor.untyped_storage().nbytes()} bytes of values; expected each value in the file")
        if span_of(tensor.shape, tensor.stride()) > _MOST_GAPS * tensor.numel():
            raise ValueError(f"tensor {name!r:.80} of {path} has shape {tuple(tensor.shape)!r:.80} with strides "
                             f"{tensor.stride()!r:.80}; expected its values within {_MOST_GAPS} times as many")
    total = sum(tensor.nbytes for tensor in tensors.values())
    if total > _MOST_SHARED * file_bytes:
        raise ValueError(f"the tensors of {path} have {total} bytes and the file {file_bytes}; expected values to be "
                         f"shared by at most {_MOST_SHARED} tensors")


def _check_tensors(tensors: Mapping, where: str) -> None:
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise ValueError(f"{where} has the key {name!r:.80}; expected the names of tensors")
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{where} holds a {type(value).__name__} under {name!r:.80}; expected tensors only")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise ValueError(f"tensor {name!r:.80} of {where} is a sparse, quantised or empty (meta) tensor; "
                             f"expected plain values")


def _first_bytes(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)
