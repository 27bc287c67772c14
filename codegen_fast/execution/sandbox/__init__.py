"""What runs on the other side: the process that programs are forked from, and the walls around them.

It is imported as a top-level package by a bare interpreter (worker.py in the folder above starts it), so that neither
torch nor codegen_fast is ever in a program's process. Everything here is the standard library, imports are relative,
and nothing imports from above.
"""
