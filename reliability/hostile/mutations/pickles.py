"""Pickles by their opcodes: calls of functions that must not be called, and tensors that lie about their size.

Payloads aim at the canary of the folder beside the case alone (watch.py): a call that gets through touches a file there
or tells the watch, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from random import Random
from typing import Any

import torch

from .plain import mutate_bytes

_MOST_GROWING = 1_000  # bytes of an opcode that is still repeated
TOUCHED = "../outside/touched"
_NUMBERS = (0, 1, -1, 2, 4, 63, 64, 255, 2**15, 2**16, 2**24, 2**31 - 1, -(2**31))
# (module, name, arguments): each would leave a trace that the watch sees.
PAYLOADS: tuple[tuple[str, str, tuple], ...] = (
    ("posix", "system", (f"echo > {TOUCHED}",)), ("os", "system", (f"echo > {TOUCHED}",)),
    ("subprocess", "Popen", (("true",),)), ("builtins", "eval", ("__import__('os').system('true')",)),
    ("builtins", "exec", ("import os; os.system('true')",)), ("builtins", "open", (TOUCHED, "w")),
    ("io", "open", (TOUCHED, "w")), ("pathlib", "Path.touch", (TOUCHED,)), ("builtins", "__import__", ("antigravity",)),
    ("builtins", "getattr", ("", "join")), ("operator", "attrgetter", ("__class__",)), ("webbrowser", "open", ("x",)),
    ("torch", "load", ("../outside/pytorch_model.bin",)), ("torch.hub", "load", ("a/b", "c")),
    ("torch.serialization", "load", ("../outside/pytorch_model.bin",)), ("torch.jit", "load", ("../outside/model.pt",)),
    ("torch._utils", "_import_dotted_name", ("os.system",)), ("torch.storage", "_load_from_bytes", (b"\x80\x02.",)),
    ("torch", "from_file", ("../outside/secret.txt", False, 4)),
    ("torch.UntypedStorage", "from_file", ("../outside/secret.txt", False, 4)), ("numpy", "load", ("../outside/secret.txt",)),
    ("numpy.core.multiarray", "_reconstruct", ()), ("codegen_fast", "AutoModelForCausalLM", ()),
    ("codegen_fast.ops", "dry_run", ()), ("shutil", "rmtree", ("../outside/nothing",)),
    ("socket", "create_connection", (("127.0.0.1", 9),)), ("ctypes", "CDLL", ("libc.so.6",)), ("types", "FunctionType", ()),
    ("marshal", "loads", (b"N",)), ("runpy", "run_path", ("../outside/secret.txt",)),
)


def mutate_pickle(rng: Random, data: bytes) -> bytes:
    match rng.randrange(8):
        case 0 | 1:
            return _with_payload(rng, data)
        case 2 | 3 | 4:
            return _mutate_opcodes(rng, data)
        case 5 | 6:
            return rng.choice(crafted())
        case _:
            return mutate_bytes(rng, data)


@cache
def crafted() -> tuple[bytes, ...]:
    """data.pkl of what torch.save writes for objects that are no plain tensors, or for tensors larger than their values."""
    one = torch.zeros(1)
    cyclic: dict[str, Any] = {"a": one}
    cyclic["self"] = cyclic
    deep: Any = one
    for _ in range(500):
        deep = [deep]
    names = ("transformer.wte.weight", "lm_head.weight")
    objects = (
        {name: one.expand(64, 16) for name in names}, {name: one.expand(2**20, 2**20) for name in names},
        {name: torch.zeros(2**20, 0) for name in names}, {"a": one.to("meta")}, {"a": torch.eye(2).to_sparse()},
        {"a": torch.eye(2).to_sparse_csr()}, {"a": torch.zeros(2, dtype=torch.complex64).conj()},
        {"a": torch.zeros(2, dtype=torch.complex64).conj().imag}, {"a": torch.zeros(2, dtype=torch.float8_e4m3fn)},
        {"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8)}, {"a": torch.nn.Parameter(one)},
        {"a": torch.zeros(2, requires_grad=True)}, {"a": torch.nn.parameter.Buffer(one)}, [one], one, {}, {1: one}, {None: one},
        {"a": {"b": one}}, {"a": None}, {"a": 10**1000}, {"a": "x" * 100_000}, {"a" * 100_000: one}, {"a": deep}, cyclic,
        OrderedDict([("a", one), ("b", OrderedDict())]), {"\ud800": one}, {"a": torch.Size([2**40])}, {"a": torch.float32},
        {"a": torch.device("cpu")}, {"a": one.untyped_storage()}, {"a": bytearray(1000)}, {"a": {1, 2}}, {"a": 1j},
        {name: torch.zeros(4).as_strided((64, 16), (0, 0)) for name in names},
        {name: torch.zeros(4)[1:3] for name in names}, {("a",): one}, {"a": torch.zeros((), dtype=torch.bool)},
    )
    return tuple(_pickle_of(each) for each in objects)


def _pickle_of(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    with zipfile.ZipFile(stream) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _with_payload(rng: Random, data: bytes) -> bytes:
    """A call somewhere in the pickle: before its end, instead of a part, or alone."""
    module, name, arguments = rng.choice(PAYLOADS)
    how = rng.randrange(4)
    if how == 0:  # by REDUCE
        call = f"c{module}\n{name}\n".encode() + _plain(arguments) + b"R"
    elif how == 1:  # by STACK_GLOBAL
        call = _plain(module) + _plain(name) + b"\x93" + _plain(arguments) + b"R"
    elif how == 2:  # by the old INST
        call = b"(" + b"".join(map(_plain, arguments)) + f"i{module}\n{name}\n".encode()
    else:  # by BUILD of a state, NEWOBJ, or an extension's code
        call = rng.choice((f"c{module}\n{name}\n".encode() + _plain(arguments) + b"\x81",
                           f"c{module}\n{name}\n".encode() + b"}" + _plain("x") + _plain(1) + b"sb",
                           b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"))
    ends = [position for _, _, position in _opcodes(data)]
    at = rng.choice((*ends[-3:], rng.choice(ends)))
    return rng.choice((data[:at] + call + b"0" + data[at:], b"\x80\x02" + call + b".", data[:at] + call + data[at:]))


def _plain(value: Any) -> bytes:
    """Opcodes that push a value, without the frame of a whole pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _opcodes(data: bytes) -> list[tuple[Any, Any, int]]:
    return list(pickletools.genops(data))


def _mutate_opcodes(rng: Random, data: bytes) -> bytes:
    """Numbers changed (sizes, strides, offsets, keys), opcodes lost, doubled or moved, names of globals and storages."""
    found = _opcodes(data)
    bounds = [position for _, _, position in found] + [len(data)]
    pieces = [data[begin:end] for begin, end in zip(bounds, bounds[1:])]
    numbers = [i for i, (opcode, _, _) in enumerate(found) if opcode.name in ("BININT", "BININT1", "BININT2", "LONG1")]
    texts = [i for i, (opcode, _, _) in enumerate(found) if opcode.name in ("BINUNICODE", "GLOBAL")]
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(pieces))
        match rng.randrange(7):
            case 0 | 1 | 2 if numbers:
                number = rng.choice(_NUMBERS)
                pieces[rng.choice(numbers)] = rng.choice((
                    b"J" + struct.pack("<i", number), _plain(rng.choice((2**31, 2**40, 2**62, 2**63, 2**64, -(2**63), 10**100))),
                    _plain(0.5), _plain(None), _plain("x")))
            case 3 if texts:
                pieces[rng.choice(texts)] = rng.choice((
                    b"ctorch\nDoubleStorage\n", b"ctorch\nBFloat16Storage\n", b"ctorch\nCharStorage\n", b"ctorch\nBoolStorage\n",
                    b"ctorch\nUntypedStorage\n", b"ctorch._utils\n_rebuild_tensor\n", b"ctorch._utils\n_rebuild_parameter\n",
                    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
                    b"ctorch._tensor\n_rebuild_from_type_v2\n", b"c__builtin__\nbytearray\n", b"c__builtin__\nset\n",
                    b"c_codecs\nencode\n", b"ccollections\nCounter\n", b"ctorch\nSize\n", b"ctorch\ndevice\n",
                    _plain("cuda:0"), _plain("meta"), _plain("99"), _plain("../../outside/secret.txt"), _plain("storage"),
                    _plain("module"), _plain("x" * 100_000), _plain("")))
            case 4:
                pieces[at] = b""
            case 5 if len(pieces[at]) < _MOST_GROWING:
                pieces[at] *= rng.choice((2, 2, 3, 10_000))
            case 6:
                other = rng.randrange(len(pieces))
                pieces[at], pieces[other] = pieces[other], pieces[at]
    return b"".join(pieces)
