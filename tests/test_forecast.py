"""Before a model is loaded: what it needs, what is there, and what would fit."""

import json
import re

import pytest
import torch
from checkpoints import make_checkpoint
from loaded_weights import load

from codegen_fast import AutoModelForCausalLM, cli, memory
from codegen_fast.config import CodeGenConfig

SHAPE_16B = {"model_type": "codegen", "vocab_size": 51200, "n_embd": 6144, "n_layer": 34, "n_head": 24, "rotary_dim": 64,
             "torch_dtype": "float16"}
CPU = torch.device("cpu")


def sentence(gb, *, dtype=torch.float16, quantization=None, stored=None):
    """The forecast of 16B where so many GB are free."""
    extra = {"quantization_config": stored} if stored else {}
    config = CodeGenConfig.from_dict({**SHAPE_16B, **extra})
    return str(memory.forecast(config, dtype, quantization or config.quantization, available=int(gb * 1e9), device=CPU))


@pytest.mark.parametrize("gb, options, expected", [
    (40, {}, "needs 32.1 GB, 40.0 GB free"),
    (22.8, {}, "needs 32.1 GB, 22.8 GB free; int8 needs 17.3 GB: pass quantization='int8'"),
    (17, {}, "needs 32.1 GB, 17.0 GB free; int8-row needs 16.4 GB: pass quantization='int8-row'"),
    (12, {}, "needs 32.1 GB, 12.0 GB free; int4 needs 9.63 GB: pass quantization='int4'"),
    (9.5, {}, "needs 32.1 GB, 9.50 GB free; int4-g64 needs 9.15 GB: pass quantization='int4-g64'"),
    (3, {}, "needs 32.1 GB, 3.00 GB free; int4-g128, the smallest type, needs 8.91 GB: free some memory or take a smaller model"),
    (40, {"dtype": torch.float32}, "needs 64.1 GB, 40.0 GB free; float16 needs 32.1 GB: pass dtype='float16'; int8 needs 18.0 GB: "
                                   "pass quantization='int8'"),
    (16, {"quantization": "int8-row"}, "needs 16.4 GB, 16.0 GB free; int4 needs 9.63 GB: pass quantization='int4'"),
    (9.5, {"quantization": "int4"}, "needs 9.63 GB, 9.50 GB free; int4-g64 needs 9.15 GB: pass quantization='int4-g64'"),
    (3, {"quantization": "int4"}, "needs 9.63 GB, 3.00 GB free; int4-g128, the smallest type, needs 8.91 GB: free some memory or "
                                  "take a smaller model"),
    (3, {"quantization": "int4-g128"}, "needs 8.91 GB, 3.00 GB free; int4-g128 is the smallest type: free some memory or take a "
                                       "smaller model"),
    (12, {"stored": {"quant_method": "codegen_fast", "weights": "int8"}},
     "needs 16.4 GB, 12.0 GB free; it is stored in int8-row, so load the original with quantization='int4', which needs 9.63 GB"),
    (3, {"stored": {"quant_method": "codegen_fast", "weights": "int8"}},
     "needs 16.4 GB, 3.00 GB free; it is stored in int8-row, so free some memory or take a smaller model"),
])
def test_the_forecast_says_what_would_fit(gb, options, expected):
    assert sentence(gb, **options) == expected


def test_where_the_system_says_nothing_nothing_is_refused():
    config = CodeGenConfig.from_dict(SHAPE_16B)
    found = memory.forecast(config, torch.float16, None, available=None, device=CPU)
    assert found.fits and str(found) == "needs 32.1 GB"


def free(monkeypatch, nbytes):
    monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": nbytes)


def test_too_large_a_model_is_refused_before_it_is_read(tmp_path, monkeypatch):
    make_checkpoint(tmp_path)
    free(monkeypatch, 1000)
    with pytest.raises(OSError, match=r"model\.safetensors as float16 needs 0\.01 GB, 0\.00 GB free; int4-g128, the smallest"):
        load(tmp_path, torch.float16)


@pytest.mark.parametrize("quantization, stored", [(None, "float16"), ("int8", "int8")])
def test_a_hub_model_that_does_not_fit_is_not_downloaded(tmp_path, monkeypatch, quantization, stored):
    """Its config alone is fetched; a quantisation that fits goes on to the weights."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE_16B))
    asked = []

    def resolve(name, patterns=None, **options):
        asked.append(patterns)
        return tmp_path

    monkeypatch.setattr("codegen_fast.model.resolve", resolve)
    free(monkeypatch, 22_800_000_000)
    if quantization is None:
        with pytest.raises(OSError) as caught:
            AutoModelForCausalLM.from_pretrained("Salesforce/codegen-16B-mono", device="cpu")
        assert str(caught.value) == ("Salesforce/codegen-16B-mono as float16 needs 32.1 GB, 22.8 GB free; int8 needs 17.3 GB: pass "
                                     "quantization='int8'")
        assert asked == [("config.json", "generation_config.json")]
    else:
        with pytest.raises(OSError, match="holds no weights"):
            AutoModelForCausalLM.from_pretrained("Salesforce/codegen-16B-mono", device="cpu", quantization=quantization)
        assert len(asked) == 2


@pytest.mark.parametrize("gb, expected", [(22.8, "as float16 needs 32.1 GB, 22.8 GB free; int8 needs 17.3 GB: pass "
                                                 "quantization='int8'"),
                                          (40, "as float16 needs 32.1 GB, 40.0 GB free")])
def test_info_shows_it(capsys, monkeypatch, tmp_path, gb, expected):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE_16B))
    monkeypatch.setattr("codegen_fast.cli.info.read_bandwidth", lambda seconds, threads: 20e9)
    monkeypatch.setattr("codegen_fast.machine.available_bytes", lambda: int(gb * 1e9))
    assert cli.main(["info", "--model", str(tmp_path)]) == 0
    assert re.search(rf"^loading +{re.escape(expected)}$", capsys.readouterr().out, re.MULTILINE)
