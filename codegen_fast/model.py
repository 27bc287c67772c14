"""CodeGenForCausalLM: the model that users hold, with the surface of transformers' class."""
from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import torch
from torch import Tensor

from .caller import outside
from .config import CodeGenConfig
from .decoder import Decoder
from .forward import PastKeyValues, forward
from .generation.call import Generation
from .generation.config import GenerationConfig, as_generation_config
from .generation.healing import healed
from .generation.request import Request, prepare
from .generation.streaming import TokenStream
from .generation.transitions import compute_transition_scores
from .generation.text import Piece, pieces, pieces_async
from .loading import (choose_device, choose_dtype, choose_model_dtype, choose_token, parse_device, parse_dtype,
                      parse_size, require_known_arguments, require_memory)
from .memory import named_where_full, parameter_count
from .outputs import CausalLMOutput, GenerateOutput
from .quantization import parse_quantization, require_backend
from .scoring import BATCH_TOKENS, Perplexity, Score, embed, perplexity, score
from .session import Session
from .tokenizer import CodeGenTokenizer
from .weights import CONFIG_PATTERNS, checkpoint_dtype, convert_weights, load_weights, open_checkpoint, resolve, save_checkpoint

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
    # What transformers' pipelines ask a model (tests/test_pipeline.py).
    main_input_name = "input_ids"
    input_modalities, output_modalities = "text", ("text",)

    def __init__(self, config: CodeGenConfig, decoder: Decoder, generation_config: Any = None,
                 folder: os.PathLike | None = None):
        self.config = config
        self._decoder = decoder
        self._folder = folder  # of the checkpoint, where a tokenizer may be
        self._own_tokenizer: CodeGenTokenizer | None = None
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
        quantization: None, "int8", or on the CPU "int4": codes of 4 bits with a scale for every 32 columns of a row
        ("int4-g64" and "int4-g128": for 64 or 128); lm_head is int8 then. int8 has a scale for every 32 columns on the
        CPU and one for each row on a GPU; "int8-row" is the latter everywhere, smaller by 6% and coarser.
        torch_dtype, device_map, low_cpu_mem_usage, trust_remote_code and attn_implementation are taken as transformers
        takes them.
        Raises OSError where there is no such checkpoint or not enough memory, ValueError where it is not one of CodeGen
        or holds wrong tensors, TypeError for unknown arguments, NotImplementedError for what only transformers does.
        """
        require_known_arguments(others)
        token = choose_token(token, others.get("use_auth_token"))
        quantization = parse_quantization(quantization)
        chosen_dtype = choose_dtype(dtype, torch_dtype)
        chosen_device = choose_device(device, device_map)
        require_backend(quantization, chosen_device)
        of_hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        announced = CodeGenConfig.from_folder(resolve(path_or_repo, CONFIG_PATTERNS, **of_hub))
        require_memory(announced, chosen_dtype, quantization, chosen_device, where=str(path_or_repo))
        folder = resolve(path_or_repo, **of_hub)
        config = CodeGenConfig.from_folder(folder)  # the weights' own: a repository may have changed in between
        generation_config = GenerationConfig.from_folder(folder, config.to_dict())
        source = open_checkpoint(folder)
        own_dtype = choose_model_dtype(chosen_dtype, checkpoint_dtype(source, config), chosen_device)
        with named_where_full(chosen_device):
            weights = load_weights(config, source, dtype=own_dtype, quantization=quantization, device=chosen_device,
                                   progress=True)
            model = cls(config, Decoder(config, weights, chosen_device), generation_config, folder)
            if config.packed is not None:
                model._require_finite(source.describe())
        return model

    def _require_finite(self, where: str) -> None:
        """ValueError if weights that were read without a look at them hold a NaN: one token goes through all of them."""
        if not bool(self(torch.zeros(1, 1, dtype=torch.long)).logits.isfinite().all()):
            raise ValueError(f"{where} holds packed weights with values that are NaN or infinite; the checkpoint is broken")

    # ---- What it is ------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model: that of its weights, or what a quantised model was quantised from."""
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

    def can_generate(self) -> bool:
        return True

    @property
    def name_or_path(self) -> str:
        """The folder that the checkpoint was read from; "" for a model that was made from another."""
        return "" if self._folder is None else str(self._folder)

    def get_memory_footprint(self) -> int:
        """transformers' name of `memory_footprint`."""
        return self.memory_footprint()

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
                 **knobs: Any) -> Tensor | GenerateOutput:
        """Continues each prompt: LongTensor (B * num_return_sequences, n + new tokens) on the model's device.

        input_ids: (B, n) ids, as a tensor, an array or a list of lists; lists of different lengths need no padding
        (the result is padded on the left). Without any, one prompt of bos_token_id.
        attention_mask: (B, n), 0 at left padding. Without it, pad_token_id marks padding where it is not an eos token.
        Rows are in transformers' order, begin with their prompt's n columns, and are padded after their end with
        pad_token_id (else the first eos).

        Knobs are those of transformers, with its defaults and precedence (call, then generation_config, then
        model.generation_config); docs/knobs.md lists every one and what it does here. Ours are
        seed: an int s, which gives prompt i the seed mix_seed(s, i), or one seed per prompt; None draws s from torch's
        default generator. sample_offset: index of the first sample, an int or one per prompt; row j of prompt i comes
        again alone with seed=mix_seed(s, i), sample_offset=j.
        stop: "function", "statement", "line", "truncation", or a list of regular expressions (codegen_fast.stops);
        a row leaves the batch when its text is complete. It needs tokenizer=, unless the checkpoint's folder has one.
        return_logprobs: k; the result then has .logprobs, with the log-probability of every token and of the k best.
        max_batch_size: rows that run at once; the others wait for a place. The result does not depend on it.
        session: a Session of this model.

        return_dict_in_generate=True or return_logprobs give a GenerateOutput.
        Raises TypeError for unknown knobs, NotImplementedError for knobs of transformers that are refused, ValueError
        for values out of range, ids outside the vocabulary, padding that is not on the left, and prompts that reach
        past the context; OSError where memory is short.
        """
        if callable(getattr(attention_mask, "to_dict", None)):
            # By position, in transformers' order: the configuration, logits_processor, stopping_criteria, prefix function.
            attention_mask, generation_config, logits_processor, stopping_criteria, prefix_fn, streamer = (
                None, attention_mask, generation_config, streamer, stopping_criteria, knobs.pop("streamer", None))
            if prefix_fn is not None:
                knobs["prefix_allowed_tokens_fn"] = prefix_fn
        knobs.update(stopping_criteria=stopping_criteria, logits_processor=logits_processor)
        stream = TokenStream(streamer)
        try:
            generation = self._generation(input_ids, attention_mask, generation_config, knobs, stream)
            with named_where_full(self.device):
                for _ in generation.events():
                    pass
                result = generation.result()
        except BaseException:
            stream.fail()
            raise
        stream.end()
        return result

    def compute_transition_scores(self, sequences: Tensor, scores: tuple[Tensor, ...],
                                  beam_indices: Tensor | None = None, normalize_logits: bool = False) -> Tensor:
        """(rows, new tokens) float32: the score of each token that `generate` chose, as transformers computes it.

        sequences, scores, beam_indices: of a GenerateOutput with output_scores=True. normalize_logits: log-softmax of
        the scores first. Positions after a beam's end are 0.
        """
        return compute_transition_scores(sequences, scores, beam_indices, normalize_logits)

    def stream(self, prompt: Any, attention_mask: Any = None, generation_config: Any = None,
               **knobs: Any) -> Iterator[Piece]:
        """The new text of `generate`, piece by piece as it comes: an iterator of Piece(text, row, finish_reason).

        prompt: a text, a list of texts, or ids as `generate` takes them. A piece never splits a character, and what a
        stop cuts off is never given out. The last piece of a row says why it ended. Closing the iterator (leaving the
        loop is enough) stops the work at the next token. Needs a tokenizer as `stop` does. Raises as `generate`.
        """
        generation = self._text_generation(prompt, attention_mask, generation_config, knobs, streams=True)
        return pieces(generation, self.device)

    def astream(self, prompt: Any, attention_mask: Any = None, generation_config: Any = None,
                **knobs: Any) -> AsyncIterator[Piece]:
        """`stream` for asyncio: the work is done in a thread, and cancelling the task stops it at the next token."""
        generation = self._text_generation(prompt, attention_mask, generation_config, knobs, streams=True)
        return pieces_async(generation, self.device)

    def session(self, *, max_tokens: int | None = None, max_bytes: int | None = None, exact: bool = False) -> Session:
        """A cache that is kept across calls: see codegen_fast.Session."""
        return Session(self, max_tokens=max_tokens, max_bytes=max_bytes, exact=exact)

    def score(self, prompts: Any, completions: Any = None, *, tokenizer: Any = None, top_k: int = 0,
              batch_tokens: int = BATCH_TOKENS) -> Score | list[Score] | list[Score | list[Score]]:
        """Log-probabilities of the tokens of completions, each given its prompt and the tokens before it.

        prompts: one text or list (tensor, array) of token ids, or a list of those. completions: one for one prompt; a
        list with one for each of several prompts; in either place a list of completions stands for several of one
        prompt. The result is a Score in each completion's place. Without completions, a Score for each prompt, of its
        tokens from the second on. Rows of a tensor are taken whole: there is no padding.

        A Score has token_ids (n,), token_logprobs (n,) float32, .sum, .mean, and with top_k > 0 the most likely tokens
        at each position: top_ids and top_logprobs (n, top_k). Tensors are on the CPU. Texts are encoded one by one and
        their ids joined, so the prompt's tokens do not depend on the completion: a completion should begin where a
        token may (its space or line break is its own). Needs a tokenizer as `stop`. What is scored together changes no
        bit. A prompt is computed once for all its completions. batch_tokens: of prompts and completions whose keys and
        values are kept at once (one pair at least); memory beside them and the result: two (256, V) float32, and the
        scratch of a prefill.

        Raises ValueError for an empty prompt or completion, pairs that do not fit the context, ids outside the
        vocabulary, numbers of completions and prompts that differ, and texts without a tokenizer; TypeError for ids
        that are no integers.
        """
        with named_where_full(self.device):
            return score(self._decoder, prompts, completions, find_tokenizer=lambda: self._tokenizer(tokenizer),
                         top_k=top_k, batch_tokens=batch_tokens)

    def perplexity(self, text: Any, *, tokenizer: Any = None, stride: int | None = None, window: int | None = None,
                   batch_tokens: int = BATCH_TOKENS) -> Perplexity:
        """exp of the mean negative log-likelihood of a text's tokens; of several texts, over all their tokens.

        text: a text or token ids, or a list of those. Longer texts than window tokens (the context) go through in
        windows that begin every stride tokens (window // 2), as in transformers' guide to perplexity: a token is scored
        once, in the first window that reaches it. A text's first token has nothing before it and is not scored; with
        stride=window neither is any window's first. The result has .perplexity, .mean_nll (nats a token), .num_tokens
        (scored) and, for texts, .bits_per_byte of their UTF-8 bytes, less the bytes of tokens that are not scored.
        Memory and tokenizer as in `score`. Raises as `score`, and ValueError for windows and strides out of range.
        """
        with named_where_full(self.device):
            return perplexity(self._decoder, text, find_tokenizer=lambda: self._tokenizer(tokenizer),
                              stride=stride, window=window, batch_tokens=batch_tokens)

    def embed(self, inputs: Any, *, tokenizer: Any = None, pooling: str = "mean", layer: int = -1,
              normalize: bool = False, batch_tokens: int = BATCH_TOKENS) -> Tensor:
        """Features (B, d) float32 on the model's device: each text's mean or last hidden state.

        inputs: a text or token ids, or a list of those. pooling: "mean" (summed in float64) or "last". layer: index
        into the n_layer + 1 hidden states of `forward`, the last after the final norm. normalize: to length 1. There is
        no padding, and what is computed together changes no bit. Memory: batch_tokens tokens of keys and values (one
        text at least) and of one layer's hidden states. Needs a tokenizer as `stop`. Raises as `score`.
        """
        with named_where_full(self.device):
            return embed(self._decoder, inputs, find_tokenizer=lambda: self._tokenizer(tokenizer),
                         pooling=pooling, layer=layer, normalize=normalize, batch_tokens=batch_tokens)

    def _text_generation(self, prompt: Any, attention_mask: Any, generation_config: Any, knobs: dict[str, Any], *,
                         streams: bool = False) -> Generation:
        """A call that knows its tokenizer, of a text or texts or what `generate` takes; streams: as it comes."""
        tokenizer = self._tokenizer(knobs.get("tokenizer"))
        if tokenizer is None:
            raise ValueError("stream needs the tokenizer, to give out text: pass tokenizer=")
        texts = [prompt] if isinstance(prompt, str) else prompt
        if isinstance(texts, (list, tuple)) and texts and all(isinstance(text, str) for text in texts):
            prompt = [tokenizer(text)["input_ids"] for text in texts]
        generation = self._generation(prompt, attention_mask, generation_config, {**knobs, "tokenizer": tokenizer},
                                      TokenStream(None))
        if streams and generation.num_beams > 1:
            raise ValueError(f"num_beams={generation.num_beams} cannot be streamed: beams are not known before the end; "
                             "use generate")
        return generation

    def _generation(self, input_ids: Any, attention_mask: Any, generation_config: Any, knobs: dict[str, Any],
                    stream: TokenStream) -> Generation:
        """A checked call. Warns as transformers would."""
        stored = as_generation_config(self._generation_config, "model.generation_config")

        def prepared(ids: Any, mask: Any) -> Request:
            return prepare(ids, mask, generation_config, knobs, stored=stored, vocab_size=self.config.vocab_size,
                           n_positions=self.config.n_positions)

        request = prepared(input_ids, attention_mask)
        tokenizer = request.tokenizer
        if request.stop is not None or request.settings.stop_strings or request.settings.token_healing:
            tokenizer = self._tokenizer(tokenizer)
        if request.settings.token_healing:
            request = prepared(healed(self, request, tokenizer), None)
        generation = Generation(self.config, self._decoder, request, stream, tokenizer)
        for message in request.warnings:
            warnings.warn(message, UserWarning, stacklevel=outside())
        return generation

    def _tokenizer(self, given: Any) -> Any:
        """The call's, or the one in the checkpoint's folder, read when first needed; None where there is none."""
        if given is not None:
            return given
        if self._own_tokenizer is None and self._folder is not None:
            try:
                self._own_tokenizer = CodeGenTokenizer.from_pretrained(self._folder)
            except (OSError, ValueError):
                self._folder = None  # a checkpoint without one
        return self._own_tokenizer

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
                        safe_serialization: bool = True, packed: bool | None = None) -> None:
        """Writes config, generation config and weights, as transformers names and lays them out.

        max_shard_size: bytes of the largest file, or a text like "5GB" (10^9 bytes each). Only safetensors are written.
        A quantised model is saved as it is, which only this package loads. packed: whether products are stored as the CPU
        kernels have them, so that they are only read when they are loaded, and again by this package alone; None: those of a
        quantised model on the CPU. Other versions may have another layout, and refuse such a file; packed=False is for keeps.

        The whole of it changes at one moment: a process that is killed leaves the old save or the new. Into the working
        directory, a mount point, a folder whose parent may not be written, or without Linux, files are renamed one by one
        instead: killed in those milliseconds, it leaves a folder without config.json, never a mixture. Raises OSError where it
        cannot be written (PermissionError where the folder is write-protected), and then the old stays; ValueError for
        packed=True of a model on a GPU.
        """
        if not safe_serialization:
            raise NotImplementedError("safe_serialization=False would write a pickle: codegen_fast saves safetensors")
        generation_config = as_generation_config(self._generation_config).to_dict()
        save_checkpoint(folder, self.config, self._decoder.weights, generation_config,
                        max_shard_bytes=parse_size(max_shard_size, "max_shard_size"), packed=packed)

    # ---- Where it is and in what type ------------------------------------------------------------

    def to(self, *args: Any, device: Any = None, dtype: Any = None, non_blocking: bool = False,
           copy: bool = False) -> CodeGenForCausalLM:
        """As torch.nn.Module.to: a device, a dtype, both, or a tensor to follow. Returns the model itself.

        On its device a float model is rounded to the new type in place. Of a quantised model the products stay as they are; the
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
                                 "packed for the kernels. model.device, model.dtype, model.num_parameters() and "
                                 "model.save_pretrained() say and do what programs mostly want of it")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce_ex__(self, protocol: int) -> Any:
        raise TypeError("a CodeGenForCausalLM can be neither copied nor pickled: use save_pretrained() and "
                        "from_pretrained(); threads may share one model")
