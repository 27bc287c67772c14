"""What the pickle of a .bin file would do, followed from its opcodes: nothing is unpickled.

torch unpickles nothing but tensors (weights_only), and yet trusts what it tells of: an object that is none is printed whole in
its error, a message goes through expressions that take the square of its length, a key is hashed that holds itself a
thousand times over. So it gets only what torch.save writes: names as keys, and calls of what makes a tensor.
"""

from __future__ import annotations

import pickletools

# What torch.save writes for a dict of plain tensors and parameters; storages and types are torch's.
_MAKERS = frozenset(f"torch._utils _rebuild_{kind}" for kind in ("tensor_v2", "tensor_v3", "parameter"))
_DICT = "collections OrderedDict"
_TYPES = frozenset(("torch.storage UntypedStorage", *(f"torch {name}" for name in (
    *(f"{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool",
                                    "ComplexDouble", "ComplexFloat", "Untyped")),
    *(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")), "uint16", "uint32", "uint64"))))
_PLAIN = {"BINUNICODE": "text", "SHORT_BINSTRING": "text", "EMPTY_LIST": "list", "EMPTY_DICT": "dict", **dict.fromkeys(
    ("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), "number")}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORAGE = ("text", "type", "text", "text", "number")  # "storage", its type, the entry of the zip, where it lay, elements
_MOST_ARGUMENTS = 8  # of a maker; looked at in every call, so that many in each would take the square of the file's length
_MOST_DIMENSIONS = 64

# What stands on the pickle's stack: one of the words above, "maker" or "type" or _DICT, "made", or those of a tuple.
_Kind = str | tuple[str, ...]


class BrokenPickle(ValueError):
    """Its text says why no pickle can be followed."""


def first_foreign_name(pickle: bytes) -> str | None:
    """The first thing that a dict of tensors has no use for; None where there is none. Raises BrokenPickle."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name == "STOP":
                return None
            if not machine.does(opcode.name, argument):
                return f"GLOBAL {argument}" if opcode.name == "GLOBAL" else opcode.name
    except (ValueError, OverflowError) as error:  # a UnicodeDecodeError is one
        raise BrokenPickle(f"its pickle breaks off: {error}") from None
    except (IndexError, KeyError):
        raise BrokenPickle("its pickle uses what it has not made") from None
    raise BrokenPickle("its pickle has no end")


class _Machine:
    def __init__(self) -> None:
        self._stack: list[_Kind] = []
        self._below: list[list[_Kind]] = []  # stacks under marks
        self._memo: dict[int, _Kind] = {}

    def does(self, name: str, argument: object) -> bool:
        """One opcode; False for one that torch.save does not write, or not of such operands."""
        stack = self._stack
        if name in _PLAIN:
            stack.append(_PLAIN[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            stack[len(stack) - count:] = [_tuple([stack[-place] for place in range(count, 0, -1)])]
        elif name == "TUPLE":
            items = self._pop_mark()
            self._stack.append(_tuple(items))
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name == "GLOBAL":
            return self._name(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "BINPERSID":
            is_storage = stack[-1] == _STORAGE
            stack[-1] = "made"
            return is_storage
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack[-1]
            stack[-1] = "made"
            return isinstance(arguments, tuple) and (
                called == "maker" and len(arguments) <= _MOST_ARGUMENTS and "tuple" not in arguments
                or called == _DICT and not arguments)
        elif name == "BUILD":
            return stack.pop() == "dict" and stack[-1] == "made"
        elif name in ("APPEND", "APPENDS"):
            self._pop_mark() if name == "APPENDS" else stack.pop()
            return self._stack[-1] == "list"
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            return self._stack[-1] in ("dict", "made") and all(key in ("text", "number") for key in items[::2])
        else:
            return name == "PROTO"
        return True

    def _name(self, argument: object) -> bool:
        kind = "maker" if argument in _MAKERS else "type" if argument in _TYPES else argument
        self._stack.append(kind)
        return kind in ("maker", "type", _DICT)

    def _pop_mark(self) -> list[_Kind]:
        items, self._stack = self._stack, self._below.pop()
        return items


def _tuple(items: list[_Kind]) -> _Kind:
    """The kinds of its members; of a tuple among these, whether it is one of numbers, as sizes are."""
    return tuple(item if isinstance(item, str) else
                 "numbers" if len(item) <= _MOST_DIMENSIONS and all(kind == "number" for kind in item) else "tuple"
                 for item in items)
