"""Which torch the binding takes: the DLPack C exchange API, its versions, and the words for a torch that lacks it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import calls
import pytest
import torch
from devices import CPU

from codegen_fast import _C


class Header(ctypes.Structure):
    pass


Header._fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("prev_api", ctypes.POINTER(Header))]


class ExchangeAPI(ctypes.Structure):
    _fields_ = [
        ("header", Header),
        ("managed_tensor_allocator", ctypes.c_void_p),
        ("managed_tensor_from_py_object_no_sync", ctypes.c_void_p),
        ("managed_tensor_to_py_object_no_sync", ctypes.c_void_p),
        ("dltensor_from_py_object_no_sync", ctypes.c_void_p),
        ("current_work_stream", ctypes.c_void_p),
    ]


NAME = b"dlpack_exchange_api"
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype, new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


@pytest.fixture
def own_api():
    """A copy of torch's API to change at will; torch's own is bound again at the end."""
    real = torch.Tensor.__dlpack_c_exchange_api__
    yield ExchangeAPI.from_buffer_copy(ExchangeAPI.from_address(capsule_pointer(real, NAME)))
    _C.bind_torch(torch.Tensor, torch.nn.Parameter, real)


def bind(api: ExchangeAPI, name: bytes = NAME) -> None:
    _C.bind_torch(torch.Tensor, torch.nn.Parameter, new_capsule(ctypes.addressof(api), name, None))


def check_that_ops_work() -> None:
    x = torch.randn(2, 16)
    assert calls.layer_norm(CPU, x, (torch.ones(16), torch.zeros(16), 1e-5)).isfinite().all()


def test_a_newer_api_is_searched_for_one_that_is_known(own_api):
    newer = ExchangeAPI.from_buffer_copy(own_api)
    newer.header.major, newer.header.minor = 3, 0
    newest = ExchangeAPI.from_buffer_copy(newer)
    newest.header.major = 4
    # What a newer major version has in the place of the functions must not be called.
    newer.dltensor_from_py_object_no_sync = newest.dltensor_from_py_object_no_sync = 1
    newer.header.prev_api = ctypes.pointer(own_api.header)
    newest.header.prev_api = ctypes.pointer(newer.header)
    bind(newest)
    check_that_ops_work()


def test_a_newer_minor_version_is_taken(own_api):
    own_api.header.minor += 7
    bind(own_api)
    check_that_ops_work()


def refuse(api: ExchangeAPI, name: bytes = NAME) -> None:
    with pytest.raises(ImportError, match=r"torch (>= )?2\.10"):
        bind(api, name)
    check_that_ops_work()  # with the API that was bound before


@pytest.mark.parametrize("major", [0, 2, 2**32 - 1])
def test_an_api_of_another_major_version_is_refused(own_api, major):
    own_api.header.major = major
    refuse(own_api)
    older = ExchangeAPI.from_buffer_copy(own_api)
    own_api.header.prev_api = ctypes.pointer(older.header)
    refuse(own_api)


def test_a_missing_function_is_refused(own_api):
    own_api.dltensor_from_py_object_no_sync = None
    refuse(own_api)


def test_functions_that_the_cpu_does_not_need_may_be_missing(own_api):
    own_api.current_work_stream = None
    own_api.managed_tensor_allocator = None
    bind(own_api)
    check_that_ops_work()


def test_something_else_than_the_capsule_is_refused(own_api):
    refuse(own_api, b"another_name")
    for capsule in (None, 3, torch.Tensor):
        with pytest.raises(ImportError, match=r"torch (>= )?2\.10"):
            _C.bind_torch(torch.Tensor, torch.nn.Parameter, capsule)
    check_that_ops_work()


def test_an_older_torch_is_named_at_import(tmp_path):
    program = "import torch; del torch.Tensor.__dlpack_c_exchange_api__; import codegen_fast.ops"
    # Elsewhere: -c puts its folder first, and a clone's sources would hide an installed package.
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and "2.10" in last and torch.__version__ in last
