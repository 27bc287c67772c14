"""The corpus: folders as a stranger would hand them over, small and sound, made anew by every run.

A seed is a few lines here and some kilobytes on disk. What once made the package fail stands as a test of its own in
tests/test_hostile_*.py; what was grown from seeds and reached more of the package is in tests/hostile_corpus (corpus.py).
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from codegen_fast import AutoModelForCausalLM
from codegen_fast.config import CodeGenConfig
from codegen_fast.weights import layout
from codegen_fast.weights.safetensors_writer import Entry, write_safetensors

CONFIG: dict[str, Any] = {
    "architectures": ["CodeGenForCausalLM"], "model_type": "codegen", "vocab_size": 64, "n_positions": 32, "n_ctx": 32,
    "n_embd": 16, "n_layer": 1, "n_head": 4, "n_inner": None, "rotary_dim": 4, "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "use_cache": True, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32", "tokenizer_class": "CodeGenTokenizer",
}
GENERATION_CONFIG: dict[str, Any] = {
    "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 2, "do_sample": True, "temperature": 0.7, "top_k": 5,
    "top_p": 0.9, "num_return_sequences": 1, "num_beams": 1, "repetition_penalty": 1.1, "max_length": 8,
    "no_repeat_ngram_size": 2, "bad_words_ids": [[5, 6]], "sequence_bias": [[[7], -1.0]], "suppress_tokens": [9],
    "transformers_version": "5.23.0",
}
END_OF_TEXT = "<|endoftext|>"
_TEXT = "def add(left, right):\n    return left + right\n\n\nfor number in range(10):\n\tprint(add(number, 1))\n"
_NUM_TOKENS = 290
_HUMANEVAL = [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}(x):\n", "entry_point": f"f{i}",
               "canonical_solution": "    return x\n", "test": f"def check(f):\n    assert f({i}) == {i}\n"}
              for i in range(3)]
_MTPB = [{"id": str(i), "name": "sum", "prompts": ["Assign {a} to x.", "Print x + {b}."], "max_gen_length": 8,
          "inputs": [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], "outputs": ["3", "7"], "category": "math"}
         for i in range(2)]
# Of a run of HumanEval that has come to its end, one temperature, two samples a problem.
RUN_SETTINGS: dict[str, Any] = {"benchmark": "humaneval", "n": 2, "temperature": [0.2], "k": [1], "seconds": 3.0, "seed": 0}


def make_seeds(root: Path) -> list[str]:
    """Writes every seed as a folder of its own below `root`; returns their names."""
    tensors = _tensors()
    whole = _checkpoint(root / "safetensors")
    _write_safetensors(whole / "model.safetensors", tensors)
    torch.save(tensors, _checkpoint(root / "bin") / "pytorch_model.bin")
    torch.save(tensors, _checkpoint(root / "old_bin") / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    for name, stem, suffix in (("sharded", "model", "safetensors"), ("sharded_bin", "pytorch_model", "bin")):
        _write_shards(_checkpoint(root / name), tensors, stem, suffix)
    for quantization in ("int8", "int8-row", "int4"):
        model = AutoModelForCausalLM.from_pretrained(whole, device="cpu", quantization=quantization)
        model.save_pretrained(root / quantization)
    AutoModelForCausalLM.from_pretrained(whole, device="cpu").save_pretrained(root / "packed", packed=True)
    _write_generation_config(root / "generation_config")
    _write_tokenizers(root)
    _write_lines(root / "humaneval", "data.jsonl", _HUMANEVAL)
    _write_lines(root / "humaneval_gz", "data.jsonl.gz", _HUMANEVAL)
    _write_lines(root / "mtpb", "data.jsonl", _MTPB)
    _write_run(root / "run")
    return sorted(path.name for path in root.iterdir())


def problems() -> list[dict[str, Any]]:
    """What the run in the seed "run" is of."""
    return [dict(problem) for problem in _HUMANEVAL]


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = CodeGenConfig.from_dict(CONFIG)
    return {spec.name: 0.1 * torch.randn(spec.shape, generator=generator) for spec in layout.expected_tensors(config)}


def _checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_safetensors(path, [Entry(name, tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: [tensor])
                             for name, tensor in tensors.items()])


def _write_shards(folder: Path, tensors: dict[str, torch.Tensor], stem: str, suffix: str) -> None:
    names = list(tensors)
    weight_map = {}
    for number, part in enumerate((names[:len(names) // 2], names[len(names) // 2:]), 1):
        file = f"{stem}-{number:05}-of-00002.{suffix}"
        weight_map.update(dict.fromkeys(part, file))
        shard = {name: tensors[name] for name in part}
        _write_safetensors(folder / file, shard) if suffix == "safetensors" else torch.save(shard, folder / file)
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _write_generation_config(folder: Path) -> None:
    _checkpoint(folder)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))


def _write_tokenizers(root: Path) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([_TEXT], trainers.BpeTrainer(
        vocab_size=_NUM_TOKENS, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False))
    model = json.loads(backend.to_str())["model"]
    runs = {" " * n: len(model["vocab"]) + n - 2 for n in range(2, 5)}
    named = {name: END_OF_TEXT for name in ("bos_token", "eos_token", "unk_token")}
    plain = {"tokenizer_class": "CodeGenTokenizer", "model_max_length": 32, "add_prefix_space": False, **named}

    files = root / "tokenizer_files"
    files.mkdir(parents=True)
    (files / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = "".join(f"{' '.join(merge)}\n" for merge in model["merges"])
    (files / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    (files / "added_tokens.json").write_text(json.dumps(runs))
    (files / "special_tokens_map.json").write_text(json.dumps(named))
    (files / "tokenizer_config.json").write_text(json.dumps(plain))

    backend.add_tokens(list(runs))
    whole = root / "tokenizer_json"
    whole.mkdir()
    backend.save(str(whole / "tokenizer.json"), pretty=False)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": False}
    listed = {str(index): {"content": text, **flags} for text, index in runs.items()}
    (whole / "tokenizer_config.json").write_text(json.dumps({**plain, "added_tokens_decoder": listed}))


def _write_lines(folder: Path, name: str, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def _write_run(folder: Path) -> None:
    names = [(problem["task_id"], sample) for problem in _HUMANEVAL for sample in range(RUN_SETTINGS["n"])]
    _write_lines(folder, "samples-t0.2.jsonl", [
        {"task_id": name, "completion": "    return x\n", "sample": sample, "tokens": 5, "finish_reason": "stop"}
        for name, sample in names])
    _write_lines(folder, "results-t0.2-3s.jsonl", [
        {"task_id": name, "sample": sample, "passed": sample == 0, "result": "passed" if sample == 0 else "timed out"}
        for name, sample in names])
    (folder / "settings.json").write_text(json.dumps({**RUN_SETTINGS, "about": {"model": "a"}}))
    counts = {problem["task_id"]: [RUN_SETTINGS["n"], 1] for problem in _HUMANEVAL}
    (folder / "summary.json").write_text(json.dumps({
        "settings": RUN_SETTINGS, "samples": {"0.2": {"samples": 6, "tokens": 30, "finish_reasons": {"stop": 6}}},
        "pass_at_k": {"1": {"by_temperature": {"0.2": 50.0}, "best_temperature": 0.2, "paper": None,
                            "best": {"value": 50.0, "low": 50.0, "high": 50.0}}},
        "counts": {"0.2": counts}}))
