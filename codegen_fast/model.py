"""CodeGenForCausalLM: the model that users hold, with the surface of transformers' class."""
from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor

from .config import CodeGenConfig
from .decoder import Decoder
from .forward import PastKeyValues, forward
from .generation import GenerationConfig, TokenStream, prepare, require_memory, run
from .generation.config import as_generation_config
from .loading import (choose_device, choose_dtype, choose_model_dtype, choose_token, parse_device, parse_dtype,
                      parse_size, require_known_arguments, require_quantization)
from .memory import named_where_full, parameter_count
from .outputs import CausalLMOutput
from .weights import checkpoint_dtype, convert_weights, load_weights, open_checkpoint, resolve, save_checkpoint

# What programs look for on a torch module, and what they find here instead.
_MODULE_ATTRIBUTES = ("parameters", "named_parameters", "buffers", "named_buffers", "modules", "named_modules",
                      "state_dict", "load_state_dict", "get_input_embeddings", "get_output_embeddings",
                      "resize_token_embeddings", "transformer", "lm_head", "apply", "children")


class CodeGenForCausalLM:
    """A CodeGen (or GPT-J) language model on this package's kernels.

    Made by `from_pretrained` or `codegen_fast.accelerate`. For inference only: nothing here records gradients. Several
    threads may call `generate` and the model itself at once.
    """

    training = False

    def __init__(self, config: CodeGenConfig, decoder: Decoder, generation_config: Any = None):
        self.config = config
        self._decoder = decoder
        if generation_config is None:
            generation_config = GenerationConfig.from_model_config(config.to_dict())
        self.generation_config = generation_config

    @classmethod
    def from_pretrained(cls, path_or_repo: str | os.PathLike, *, dtype: str | torch.dtype | None = "auto",
                        device: str | torch.device | int | None = "auto", quantization: str | None = None,
                        revision: str | None = None, cache_dir: str | os.PathLike | None = None,
                        token: str | bool | None = None, local_files_only: bool = False, torch_dtype: Any = None,
                        device_map: Any = None, **others: Any) -> CodeGenForCausalLM:
        """Loads a checkpoint folder or a Hugging Face Hub repository.

        dtype: torch.float32, float16 or bfloat16 or its name; "auto" keeps the checkpoint's. On a GPU float32 is not
        supported, and a float32 checkpoint is loaded as float16 with a UserWarning.
        device: "auto" is a GPU where one can be used, else the CPU; "cuda", "cuda:1" or a number is that GPU.
        quantization: None or "int8".
        torch_dtype, device_map, low_cpu_mem_usage, trust_remote_code and attn_implementation are taken as transformers
        takes them.
        Raises OSError where there is no such checkpoint or not enough memory, ValueError where it is not one of CodeGen
        or holds wrong tensors, TypeError for unknown arguments, NotImplementedError for what only transformers does.
        """
        require_known_arguments(others)
        token = choose_token(token, others.get("use_auth_token"))
        require_quantization(quantization)
        chosen_dtype = choose_dtype(dtype, torch_dtype)
        chosen_device = choose_device(device, device_map)
        folder = resolve(path_or_repo, revision=revision, cache_dir=cache_dir, token=token,
                             local_files_only=local_files_only)
        config = CodeGenConfig.from_folder(folder)
        generation_config = GenerationConfig.from_folder(folder, config.to_dict())
        source = open_checkpoint(folder)
        own_dtype = choose_model_dtype(chosen_dtype, checkpoint_dtype(source, config), chosen_device)
        with named_where_full(chosen_device):
            weights = load_weights(config, source, dtype=own_dtype, quantization=quantization, device=chosen_device,
                                   progress=True)
        return cls(config, Decoder(config, weights, chosen_device), generation_config)

    # ---- What it is ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model: that of its weights, or what an int8 model was quantised from."""
        return self._decoder.dtype

    @property
    def quantization(self) -> str | None:
        return self._decoder.weights.quantization

    @property
    def generation_config(self) -> Any:
        """The defaults of `generate`; assign a GenerationConfig (ours or transformers') or a dict."""
        return self._generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        checked = as_generation_config(value, "model.generation_config")
        self._generation_config = checked if value is None or isinstance(value, dict) else value

    def memory_footprint(self) -> int:
        """Bytes of the weights as they lie in memory."""
        return self._decoder.weights.nbytes()

    def num_parameters(self) -> int:
        """Parameters of the model; the type they are stored in does not matter."""
        return parameter_count(self.config)

    def __repr__(self) -> str:
        config = self.config
        return (f"CodeGenForCausalLM(n_layer={config.n_layer}, n_head={config.n_head}, n_embd={config.n_embd}, "
                f"vocab_size={config.vocab_size}, dtype={self.dtype}, quantization={self.quantization!r}, "
                f"device='{self.device}')")

    # ---- What it does ----------------------------------------------------------------------------

    def generate(self, input_ids: Any = None, attention_mask: Any = None, generation_config: Any = None,
                 streamer: Any = None, stopping_criteria: Any = None, logits_processor: Any = None,
                 **knobs: Any) -> Tensor:
        """Continues each prompt: LongTensor (B * num_return_sequences, n + new tokens) on the model's device.

        input_ids: (B, n) ids, as a tensor, an array or a list of lists; without any, one prompt of bos_token_id.
        attention_mask: (B, n), 0 at left padding. Without it, pad_token_id marks padding where it is not an eos token.
        Rows are in transformers' order, begin with their prompt's n columns, and are padded after an eos token with
        pad_token_id (else the first eos).

        Knobs, with transformers' defaults and precedence (call, then generation_config, then model.generation_config):
        max_new_tokens, max_length (prompt included; 20 new tokens where neither is set), do_sample, temperature,
        top_k, top_p, num_return_sequences, eos_token_id (one or a list), pad_token_id, bos_token_id.
        Ours: seed (an int s, which gives prompt i the seed mix_seed(s, i), or one seed per prompt; None draws s from
        torch's default generator) and sample_offset (index of the first sample): row j of prompt i comes again alone
        with seed=mix_seed(s, i), sample_offset=j.
        streamer: anything with put(ids) and end().

        Raises TypeError for unknown knobs, NotImplementedError for knobs of transformers that are not done,
        ValueError for values out of range, ids outside the vocabulary, padding that is not on the left, and prompts
        that reach past the context.
        """
        stored = as_generation_config(self._generation_config, "model.generation_config")
        knobs.update(stopping_criteria=stopping_criteria, logits_processor=logits_processor)
        decoder = self._decoder
        stream = TokenStream(streamer)
        try:
            request = prepare(input_ids, attention_mask, generation_config, knobs, stored=stored,
                              vocab_size=self.config.vocab_size, n_positions=self.config.n_positions)
            require_memory(self.config, decoder.dtype, [len(prompt) for prompt in request.prompts],
                           request.settings.num_return_sequences, decoder.device,
                           kept=sum(place.nbytes() for place in list(decoder.kept)))
            for message in request.warnings:
                warnings.warn(message, UserWarning, stacklevel=2)
            stream.put(request.input_ids)
            with named_where_full(decoder.device):
                rows = run(decoder, request.prompts, request.steps, request.settings, request.seeds,
                           request.sample_indices, stream)
        except BaseException:
            stream.fail()
            raise
        stream.end()
        pad = request.settings.pad_token_id
        longest = max(map(len, rows))
        new = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], dtype=torch.long, device="cpu")
        return torch.cat([request.input_ids, new], 1).to(decoder.device)

    def forward(self, input_ids: Any = None, attention_mask: Any = None,
                past_key_values: PastKeyValues | None = None, use_cache: bool | None = None, labels: Any = None,
                output_hidden_states: bool | None = None, return_dict: bool | None = None,
                logits_to_keep: int | Tensor = 0, **others: Any) -> CausalLMOutput | tuple:
        """A forward pass over input_ids (B, n).

        attention_mask: (B, past columns + n), 0 at padding, on the left or on the right.
        Gives .logits (B, n, V) float32, whatever the weights' type; .loss with labels (B, n): the mean cross-entropy
        of each next token, where labels of -100 and those after padding don't count; .hidden_states with
        output_hidden_states: n_layer + 1 tensors (B, n, d) in the model's dtype, the last after the final norm;
        .past_key_values unless use_cache=False.
        At padding logits and hidden states are 0. Positions count each row's own tokens; transformers counts
        columns, which is the same to rotary attention. past_key_values grows in place.
        return_dict=False gives the tuple of what is there.

        Raises as `generate` does; TypeError for a cache of transformers.
        """
        if input_ids is None and others.get("inputs_embeds") is None:
            raise ValueError("model() needs input_ids, a tensor of token ids of shape (batch, tokens)")
        with named_where_full(self.device):
            output = forward(self._decoder, input_ids, attention_mask, past_key_values, use_cache, labels,
                             output_hidden_states, logits_to_keep, others)
        return output.to_tuple() if return_dict is False else output

    __call__ = forward

    def save_pretrained(self, folder: str | os.PathLike, *, max_shard_size: int | str = "5GB",
                        safe_serialization: bool = True) -> None:
        """Writes config, generation config and weights, as transformers names and lays them out.

        max_shard_size: bytes of the largest file, or a text like "5GB" (10^9 bytes each). Only safetensors are written.
        An int8 model is saved as int8, which only this package loads. Raises OSError where it cannot be written.
        """
        if not safe_serialization:
            raise NotImplementedError("safe_serialization=False would write a pickle: codegen_fast saves safetensors")
        generation_config = as_generation_config(self._generation_config).to_dict()
        save_checkpoint(folder, self.config, self._decoder.weights, generation_config,
                        max_shard_bytes=parse_size(max_shard_size, "max_shard_size"))

    # ---- Where it is and in what type ------------------------------------------------------------

    def to(self, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False,
           copy: bool = False) -> CodeGenForCausalLM:
        """As torch.nn.Module.to: a device, a dtype, both, or a tensor to follow. Returns the model itself.

        On its device a float model is rounded to the new type in place. Of an int8 model the products stay int8; the
        embedding and the caches to come change their type. A float32 model that moves to a GPU becomes float16, with a
        UserWarning.
        """
        for value in args:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif not isinstance(value, bool):  # bool: non_blocking and copy, by position
                device = value
        asked = None if dtype is None else parse_dtype(dtype)
        new_device = self.device if device is None else parse_device(device)
        new_dtype = choose_model_dtype(asked, self.dtype, new_device)
        if new_dtype == self.dtype and new_device == self.device:
            return self
        self._decoder.kept.clear()
        with named_where_full(new_device):
            weights = convert_weights(self.config, self._decoder.weights, new_dtype, new_device)
        self._decoder = Decoder(self.config, weights, new_device)
        return self

    def cuda(self, device: int | None = None) -> CodeGenForCausalLM:
        return self.to("cuda" if device is None else device)

    def cpu(self) -> CodeGenForCausalLM:
        return self.to("cpu")

    def half(self) -> CodeGenForCausalLM:
        return self.to(torch.float16)

    def bfloat16(self) -> CodeGenForCausalLM:
        return self.to(torch.bfloat16)

    def float(self) -> CodeGenForCausalLM:
        return self.to(torch.float32)

    def eval(self) -> CodeGenForCausalLM:
        return self

    def train(self, mode: bool = True) -> CodeGenForCausalLM:
        """Only train(False), which changes nothing: this model cannot be trained."""
        if mode:
            raise NotImplementedError("codegen_fast is for inference: train the model with transformers, then load "
                                      "its checkpoint here")
        return self

    def requires_grad_(self, requires_grad: bool = True) -> CodeGenForCausalLM:
        """Only requires_grad_(False), which changes nothing."""
        return self.train(requires_grad)

    def __getattr__(self, name: str) -> Any:
        if name in _MODULE_ATTRIBUTES:
            raise AttributeError(f"this CodeGenForCausalLM is no torch module and has no {name!r}: its weights are "
                                 "packed for the kernels; num_parameters(), device, dtype and save_pretrained() exist")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce_ex__(self, protocol: int) -> Any:
        raise TypeError("a CodeGenForCausalLM can be neither copied nor pickled: use save_pretrained() and "
                        "from_pretrained(); threads may share one model")
