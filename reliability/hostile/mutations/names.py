"""Words that mean something in a file: keys that our parsers know, and paths that lead out of the folder."""

from __future__ import annotations

from codegen_fast.generation.knobs import KNOBS

# Beside the folder of every case lies "outside" with sound files in it, which nothing may open (watch.py).
OUTSIDE = ("outside/model.safetensors", "outside/pytorch_model.bin", "outside/config.json", "outside/tokenizer.json",
           "outside/secret.txt")
PATHS = (*(f"../{path}" for path in OUTSIDE), "../outside", "/etc/passwd", "/dev/zero", "/proc/self/environ", "..", ".", "/",
         "./model.safetensors", "sub/../../outside/model.safetensors", "..\\outside\\config.json", "~/secret",
         "file:///etc/passwd", "model.safetensors\x00.json", "x" * 300)

KEYS = tuple(dict.fromkeys([
    "model_type", "vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner", "rotary_dim",
    "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "use_cache", "bos_token_id", "eos_token_id",
    "pad_token_id", "torch_dtype", "dtype", "hidden_size", "num_attention_heads", "num_hidden_layers",
    "max_position_embeddings", "architectures", "auto_map", "quantization_config", "quant_method", "bits", "group_size",
    "weights", "extra", "metadata", "weight_map", "total_size", "__metadata__", "data_offsets", "shape",
    "tokenizer_class", "added_tokens_decoder", "added_tokens", "extra_special_tokens", "additional_special_tokens",
    "special_tokens", "model_max_length", "padding_side", "truncation_side", "add_prefix_space", "add_bos_token",
    "bos_token", "eos_token", "unk_token", "pad_token", "content", "special", "normalized", "lstrip", "single_word", "id",
    "truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "type", "vocab", "merges",
    "dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "pattern",
    "task_id", "prompt", "entry_point", "test", "prompts", "inputs", "outputs", "max_gen_length", "sample", "case",
    "completion", "tokens", "finish_reason", "passed", "result", "benchmark", "n", "temperature", "k", "seconds", "counts",
    "pass_at_k", "samples", "__class__", "__reduce__", "$ref", *KNOBS,
]))
