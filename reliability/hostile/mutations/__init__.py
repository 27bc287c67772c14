"""Damage: from sound files to those that a careless or a hostile hand would write.

`mutate(rng, folder, names)` changes files of a folder in place; everything follows from `rng`, so that a case is known
by its number. A file is damaged by what it is: JSON by values, keys and nesting, zips by their entries and numbers,
pickles by their opcodes, safetensors by their header; any file as bytes; and any file may become a link, a directory or
a device.
"""

from .damage import mutate, mutate_bytes_of
from .files import replace_file

__all__ = ["mutate", "mutate_bytes_of", "replace_file"]
