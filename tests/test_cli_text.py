"""The parts of the command line: what is written when, its clock, bytes a token costs, numbers as people read them."""

import pytest
import torch

from checkpoints import make_checkpoint
from codegen_fast import AutoModelForCausalLM, CodeGenConfig
from codegen_fast.cache import PagedCache
from codegen_fast.cli import figures
from codegen_fast.cli.clock import TimedGeneration
from codegen_fast.cli.stream import write_sample, write_samples
from codegen_fast.cli.summary import beams_summary, drafts_summary
from codegen_fast.cli.traffic import decode_bytes, weight_bytes
from codegen_fast.generation.speculation import Report
from codegen_fast.generation.stopping import Emitted
from codegen_fast.generation.text import Piece
from codegen_fast.memory import cache_bytes, parameter_count
from tokenizers_small import write_tokenizer


def _pieces(*pieces):
    """(row, text, finish_reason) each; an exception is raised in its place."""
    for piece in pieces:
        if isinstance(piece, BaseException):
            raise piece
        row, text, reason = piece
        yield Piece(text, row, reason, ())


def test_one_sample_is_written_as_it_comes():
    written = []
    pieces = _pieces((0, "a", None), (0, "b", None), (0, "", "eos"))
    write_sample(written.append, "P:", (piece for piece in pieces if written))  # the prompt before the first
    assert written == ["P:", "a", "b", "\n"]


@pytest.mark.parametrize("prompt, text", [("P:", "a\n"), ("P:\n", "")])
def test_a_line_that_has_ended_is_not_ended_again(prompt, text):
    written = []
    write_sample(written.append, prompt, _pieces((0, text, "length")))
    assert "".join(written) == prompt + text


def test_several_samples_are_written_as_they_are_done_and_never_mixed():
    written = []
    write_samples(written.append, "P:", _pieces((0, "a", None), (2, "c", None), (1, "b", None), (1, "", "eos"),
                                                (2, "d\n", None), (0, "e", "stop"), (2, "", "length")), 3)
    assert written == ["=== sample 2 of 3 ===\nP:b\n", "=== sample 1 of 3 ===\nP:ae\n",
                       "=== sample 3 of 3 ===\nP:cd\n"]


def test_an_interruption_leaves_a_whole_line_or_no_sample():
    written = []
    with pytest.raises(KeyboardInterrupt):
        write_sample(written.append, "P:", _pieces((0, "a", None), KeyboardInterrupt()))
    assert "".join(written) == "P:a\n"
    with pytest.raises(KeyboardInterrupt):
        write_samples(written.append, "P:", _pieces((0, "b", None), (1, "c", None), KeyboardInterrupt()), 2)
    assert "".join(written) == "P:a\n"


class _Scripted:
    """A generation of 3 rows, 2 of which run at once; every event takes 1 second more than the one before."""

    rows = [[], [], []]

    def __init__(self, clock):
        self._clock = clock

    def events(self):
        for taken, rows in enumerate([[0, 1], [0, 1], [], [2], [0, 2], [0, 0, 2]], start=1):
            self._clock[0] += taken
            yield Emitted(rows, [5] * len(rows), {})


def test_what_is_done_between_two_tokens_is_not_the_models_time(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("codegen_fast.cli.clock.time.perf_counter", lambda: clock[0])
    generation = TimedGeneration(_Scripted(clock))
    for _ in generation.events():
        clock[0] += 100
    assert (generation.first_tokens, generation.first_seconds) == (2, 1)
    assert generation.decode_seconds == 2 + 3 + 4 + 5 + 6
    assert generation.new_tokens == [5, 2, 3]
    assert generation.decode_steps == 3  # that with row 2 alone only begins it


def test_rows_that_wait_are_counted_as_they_are(tmp_path):
    make_checkpoint(tmp_path, seed=7, vocab_size=460, n_positions=256, eos_token_id=None)
    write_tokenizer(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    knobs = dict(do_sample=True, num_return_sequences=5, seed=1, max_new_tokens=6)
    for at_once, first, steps in ((None, 5, 5), (2, 2, 15)):
        generation = TimedGeneration(model._text_generation("x = 1", None, None, {**knobs, "max_batch_size": at_once}))
        for _ in generation.events():
            pass
        assert generation.new_tokens == [6] * 5 == [len(row) for row in generation.rows]
        assert (generation.first_tokens, generation.decode_steps) == (first, steps)


def test_figures_of_drafts_and_beams():
    generation = TimedGeneration(_Scripted([0.0]))
    generation.new_tokens, generation.first_tokens = [5, 2, 3], 3
    generation.first_seconds, generation.decode_seconds = 0.5, 0.25
    speed = "10 tokens in 3 samples: first after 0.50 s (prompt of 9), then 7 in 0.25 s: 28.0 tokens/s"
    report = Report(drafted=4, accepted=3, tokens=7, verify_calls=2, plain_calls=1)
    assert drafts_summary(generation, report, 9) == f"{speed}, 2.33 tokens a call, 75% of 4 drafted tokens accepted"
    report = Report(tokens=7, plain_calls=7)
    assert drafts_summary(generation, report, 9) == f"{speed}, 1.00 tokens a call, nothing was drafted"
    assert beams_summary(generation, 4, 9) == ("10 tokens in the 3 best of 4 beams: 0.50 s (prompt of 9), "
                                               "20.0 tokens/s")


@pytest.mark.parametrize("options", [{}, {"n_inner": 96}, {"tie_word_embeddings": True}, {"model_type": "gptj"}])
def test_parameters(tmp_path, options):
    reference = make_checkpoint(tmp_path, **options)
    assert parameter_count(CodeGenConfig.from_folder(tmp_path)) == reference.num_parameters()


@pytest.mark.parametrize("dtype, quantization", [
    (torch.float32, None), (torch.float16, None), (torch.bfloat16, "int8"),
    (torch.float32, "int4")])
def test_bytes_are_those_of_the_tensors(tmp_path, dtype, quantization):
    make_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, quantization=quantization)
    config = model.config
    weights = weight_bytes(config, dtype, quantization)
    embedding = config.vocab_size * config.n_embd * dtype.itemsize
    assert weights == model.memory_footprint() - embedding

    page = PagedCache(config.n_layer, config.n_embd, dtype)
    assert cache_bytes(config, dtype, page.page_size) == page.storage[:, 0].nbytes

    new_tokens, prompt = [5, 1, 3], 11
    expected = 0
    for step in range(1, 5):  # the first tokens come from the prefill
        expected += weights
        expected += sum(cache_bytes(config, dtype, prompt + step) for n in new_tokens if n > step)
    assert decode_bytes(config, dtype, quantization, prompt, new_tokens, steps=4) == expected


@pytest.mark.parametrize("text, expected", [
    (figures.size(12), "12 B"), (figures.size(14_215_000_000), "14.2 GB"), (figures.size(4096), "4.1 kB"),
    (figures.size(123_456_789_000), "123 GB"), (figures.size(1_234e9), "1234 GB"), (figures.short(4_729_344), "4.73 M"),
    (figures.cache_size(32 << 20), "32 MiB"), (figures.rate(79.04), "79.0"), (figures.rate(1337.7), "1338"),
    (figures.count(1, "thread"), "1 thread"), (figures.count(2, "thread"), "2 threads"),
    (figures.duration(0.807), "0.81 s"), (figures.duration(0.0042), "4.2 ms"),
])
def test_figures(text, expected):
    assert text == expected
