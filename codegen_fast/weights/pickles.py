"""What the pickle of a .bin file names, read from its opcodes: nothing is unpickled."""

from __future__ import annotations

import pickletools

# What torch.save writes for a dict of plain tensors and parameters; storages and types are torch's.
_NAMES = frozenset(("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
                    "torch._utils _rebuild_parameter", "torch.storage UntypedStorage"))
_TYPES = frozenset(f"torch {name}" for name in (
    *(f"{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
                                    "ComplexDouble", "ComplexFloat", "Untyped")),
    *(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")), "uint16", "uint32", "uint64"))
# Other ways than GLOBAL to have something called; torch.save writes none of them.
_CALLS = frozenset(("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"))


def first_foreign_name(pickle: bytes) -> str | None:
    """The first thing that a dict of tensors has no use for; None where there is none, or it breaks off before."""
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "GLOBAL" and argument not in _NAMES and argument not in _TYPES:
                return f"GLOBAL {argument}"
            if opcode.name in _CALLS:
                return opcode.name
    except (ValueError, UnicodeDecodeError, OverflowError):
        return None  # torch says what is wrong with it
    return None
