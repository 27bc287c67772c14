"""Every knob of transformers is done, refused or a listed hint, and docs/knobs.md says so."""
from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import transformers
from transformers.generation import GenerationMixin

from codegen_fast.generation import GenerationConfig
from codegen_fast.generation.config import Settings
from codegen_fast.generation.knobs import ARGUMENTS, KNOBS

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT))

from tools.knob_table import page  # noqa: E402

HINTS = {"cache_implementation", "cache_config", "max_cache_len", "compile_config", "disable_compile",
         "prefill_chunk_size", "low_memory", "continuous_batching_config", "assistant_lookbehind", "target_lookbehind",
         "synced_gpus", "trust_remote_code", "logits_to_keep"}
OURS = {"seed", "sample_offset", "stop", "return_logprobs", "session", "max_batch_size"}
# What CodeGen's forward pass takes, and generate() therefore too.
FORWARD = set(inspect.signature(transformers.CodeGenForCausalLM.forward).parameters) - {"self", "kwargs"}


def test_every_knob_of_transformers_is_done_refused_or_a_listed_hint():
    theirs = {name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")}
    assert theirs - {"transformers_version"} == set(KNOBS)


def test_every_argument_of_transformers_generate_is_too():
    signature = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    # generate() takes these from **kwargs.
    hidden = {"tokenizer", "assistant_tokenizer", "trust_remote_code", "output_router_logits", "cache_position"}
    assert (signature | hidden | FORWARD | OURS) - set(KNOBS) == set(ARGUMENTS)
    assert not set(KNOBS) & set(ARGUMENTS)


@pytest.mark.parametrize("knob", [*KNOBS.values(), *ARGUMENTS.values()], ids=lambda knob: knob.name)
def test_a_row_of_the_table_is_complete(knob):
    assert knob.state in ("done", "hint", "never")
    assert (knob.name in HINTS) == (knob.state == "hint")
    assert bool(knob.does) == (knob.state != "never")
    assert bool(knob.instead) == (knob.state == "never")
    assert (knob.check is not None) == (knob.state == "done" and knob.name in KNOBS)
    assert "|" not in knob.does + knob.instead and "\n" not in knob.does + knob.instead


def test_a_knob_that_is_done_reaches_the_settings():
    fields = {name.replace("_token_ids", "_token_id") for name in Settings.__dataclass_fields__}
    assert fields == {name for name, knob in KNOBS.items() if knob.state == "done"} | {"pad_is_set"}
    assert set(vars(GenerationConfig())) == {*KNOBS, "extra", "unknown"}


def test_the_documentation_is_what_the_list_says():
    written = (ROOT / "docs" / "knobs.md").read_text(encoding="utf-8")
    assert written == page(), "write it anew: python -m tools.knob_table > docs/knobs.md"
    assert all(f"| `{name}` |" in written for name in (*KNOBS, *ARGUMENTS))
