"""Engines, a file a family. Each is imported in its worker only, by the interpreter that has it."""
