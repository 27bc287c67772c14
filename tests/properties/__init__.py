"""Properties of the contract (csrc/ops.h), each tried on one random case: an op's result against the float64 reference
within the derived bounds, between fences, with its inputs unchanged, and the same bits in every surrounding and company.

A case has a name, device/op/number, and follows from it alone: run_case(name) runs it again anywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from devices import DEVICES, GPU, Device, why_no_gpu

from . import cache, choosing, products, rows, weights
from .chance import Chance

PROPERTIES: dict[str, Callable[[Device, Chance], None]] = {
    "pack": weights.pack,
    "pack_quantized": weights.pack_quantized,
    "quantize_activations": weights.quantize_activations,
    "embed": rows.embed,
    "layer_norm": rows.layer_norm,
    "input_product": products.input_product,
    "attention": cache.attention,
    "appended": cache.appended,
    "output_product": products.output_product,
    "lm_head": products.lm_head,
    "sample": choosing.sample,
    "filter_logits": choosing.filter_logits,
    "edit_logits": choosing.edit_logits,
    "advance": choosing.advance,
    "copy_pages": cache.copy_pages,
}


class CaseFailed(AssertionError):
    """A case that did not hold; the text names it, says how to run it again, and what was wrong."""


def devices() -> list[Device]:
    """Where cases can run here."""
    return [device for device in DEVICES if device is not GPU or why_no_gpu() is None]


def missing_devices() -> dict[str, str]:
    """Devices that there are and where cases cannot run here, and why."""
    built = {f"cpu-{isa}" for isa in ("avx512", "avx2_vnni", "avx2", "portable", "neon_dotprod", "neon")}
    missing = {name: "this machine does not execute it" for name in sorted(built - {d.name for d in DEVICES})}
    if why := why_no_gpu():
        missing[GPU.name] = why
    return missing


def run_case(name: str) -> dict[str, str]:
    """Runs the case of that name, and says what was drawn for it; CaseFailed where it does not hold."""
    place, _, rest = name.partition("/")
    op, _, number = rest.partition("/")
    found = {device.name: device for device in devices()}
    if place not in found or op not in PROPERTIES or not number.isdecimal():
        raise ValueError(f"case is {name!r}; expected DEVICE/OP/NUMBER with one of the devices {', '.join(found)} and "
                         f"one of {', '.join(PROPERTIES)}")
    device = found[place]
    chance = Chance(name, small=device.emulated)
    try:
        with device.running():
            PROPERTIES[op](device, chance)
    except Exception as error:
        told = f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error)
        raise CaseFailed(f"python -m reliability.properties --case {name}\n  {told}\n  {chance.told()}") from error
    return chance.drawn()
