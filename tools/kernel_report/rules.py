"""What each kernel is meant to be: hot or not, and the instructions that it lives on.

The first role whose pattern matches a kernel's name counts; a kernel without one fails the check, so that a new one is
given a role on purpose. Names are the ones that the report prints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """``hot``: the time of a step or of a prompt depends on it, so nothing of it may lie in local memory.

    ``waits``: calls dependency_wait() (ACQBULK from sm_90 on), without which the kernel after it may overtake the one
    before it.
    """

    name: str
    pattern: str
    hot: bool
    uses: tuple[str, ...] = ()  # on every architecture
    uses_before_sm90: tuple[str, ...] = ()
    uses_from_sm90: tuple[str, ...] = ()
    waits: bool = True

    def needs(self, arch: str) -> tuple[str, ...]:
        """The watched instructions (parse.WATCHED) that its code must hold."""
        if capability(arch) < 90:
            return self.uses + self.uses_before_sm90
        return self.uses + self.uses_from_sm90 + (("ACQBULK",) if self.waits else ())


TENSOR_CORES = ("HMMA", "LDSM")
ROWS = ("LDG.128", "STG.128")

ROLES: tuple[Role, ...] = (
    # The weight stream: bulk copies, below sm_90 the lanes' own asynchronous copies.
    Role("decode product", r"decode_product_kernel<", hot=True, uses=TENSOR_CORES,
         uses_before_sm90=("LDGSTS",), uses_from_sm90=("UBLKCP",)),
    Role("int8 prefill product", r"prefill_kernel<signed char", hot=True, uses=("IMMA", "LDSM", "LDGSTS")),
    Role("prefill product", r"prefill_kernel<", hot=True, uses=(*TENSOR_CORES, "LDGSTS")),
    Role("decode attention", r"decode_attention_kernel<", hot=True, uses=(*TENSOR_CORES, "LDGSTS")),
    Role("prefill attention", r"prefill_attention_kernel<", hot=True, uses=(*TENSOR_CORES, "LDGSTS")),
    Role("combination of splits", r"combine_attention_kernel<", hot=True),
    Role("row kernel of prefill", r"(normalize|normalize_quantize|copy)_kernel<|quantize_kernel<true", hot=True,
         uses=ROWS),
    # Once a step or less, beside which the products take all the time.
    Role("row kernel", r"(embed|layer_norm)_kernel<", hot=False, uses=ROWS),
    Role("page copy", r"copy_pages_kernel", hot=False, uses=ROWS),
    Role("end of a step", r"(sample|filter|edit|advance)_rows", hot=False),
    # While a model is loaded or saved.
    Role("packing kernel", r"(pack|unpack|dequantize)_kernel<", hot=False, uses=ROWS),
    Role("quantising kernel", r"(quantize_kernel<|pack_quantized_kernel|unpack_quantized_kernel)", hot=False),
    # Never launched: tells whether the build has code for a GPU.
    Role("probe", r"probe$", hot=False, waits=False),
)  # fmt: skip


def capability(arch: str) -> int:
    """sm_90a -> 90"""
    return int(re.fullmatch(r"sm_(\d+)\w*", arch)[1])


def role_of(name: str) -> Role | None:
    return next((role for role in ROLES if re.match(role.pattern, name)), None)
