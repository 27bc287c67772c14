"""The parts of the command line: text from tokens, bytes a token costs, numbers as people read them."""

import pytest
import torch

from checkpoints import make_checkpoint
from codegen_fast import AutoModelForCausalLM, AutoTokenizer, CodeGenConfig
from codegen_fast.cache import PagedCache
from codegen_fast.cli import figures
from codegen_fast.cli.stream import PieceDecoder, TextStreamer
from codegen_fast.cli.traffic import decode_bytes, weight_bytes
from codegen_fast.memory import cache_bytes, parameter_count
from tokenizers_small import make_texts, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def _pieces(tokenizer, ids):
    decoder = PieceDecoder(tokenizer.decode)
    return [*(decoder.push(index) for index in ids), decoder.finish()]


def test_pieces_end_with_whole_characters(tokenizer):
    text = "x = 'é漢字🙂'  # naïve\n        return"
    ids = tokenizer(text).input_ids
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert any(tokenizer.decode([index]).endswith("\ufffd") for index in ids)  # else this tests nothing
    # What needs no more bytes is not held back: a run of spaces is one token and one piece.
    assert "        " in pieces and pieces[-1] == ""


@pytest.mark.parametrize("seed", range(3))
def test_pieces_together_are_the_decoded_sequence(tokenizer, seed):
    for text in make_texts(20, seed):
        ids = tokenizer(text).input_ids
        assert "".join(_pieces(tokenizer, ids)) == tokenizer.decode(ids)
    # Random tokens are full of bytes that are no UTF-8.
    ids = torch.randint(len(tokenizer), (300,), generator=torch.Generator().manual_seed(seed)).tolist()
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids) and "\ufffd" in "".join(pieces)


def test_a_replacement_character_in_the_text_and_a_cut_character_at_its_end(tokenizer):
    ids = tokenizer("a\ufffdb").input_ids
    assert "".join(_pieces(tokenizer, ids)) == "a\ufffdb"
    cut = tokenizer("ab漢").input_ids[:-1]
    pieces = _pieces(tokenizer, cut)
    assert "".join(pieces) == "ab\ufffd" and pieces[-1] == "\ufffd"


def _streamer(written, samples, limit=4, eos=(0,)):
    return TextStreamer(written.append, "P:", samples, limit, eos, lambda ids: "".join(chr(96 + i) for i in ids))


def test_one_sample_is_written_as_it_comes():
    written = []
    streamer = _streamer(written, 1)
    streamer.put(torch.tensor([[7, 7, 7]]))
    assert written == ["P:"]
    streamer.put(torch.tensor([1]))
    streamer.put(torch.tensor([2]))
    assert written == ["P:", "a", "b"]
    streamer.put(torch.tensor([0]))
    streamer.end()
    assert "".join(written) == "P:ab\n"
    assert (streamer.prompt_tokens, streamer.new_tokens) == (3, [3])
    assert streamer.first_seconds > 0 and streamer.decode_seconds > 0


def test_several_samples_are_written_as_they_are_done_and_never_mixed():
    written = []
    streamer = _streamer(written, 3)
    streamer.put(torch.full((3, 2), 7))
    streamer.put(torch.tensor([1, 2, 3]))
    streamer.put(torch.tensor([1, 0, 3]))
    assert "".join(written) == "=== sample 2 of 3 ===\nP:b\n"
    streamer.put(torch.tensor([1, 0, 3]))  # row 1 is padded from here on
    streamer.put(torch.tensor([1, 0, 0]))
    streamer.end()
    assert "".join(written) == ("=== sample 2 of 3 ===\nP:b\n=== sample 1 of 3 ===\nP:aaaa\n"
                                "=== sample 3 of 3 ===\nP:ccc\n")
    assert streamer.new_tokens == [4, 2, 4]


@pytest.mark.parametrize("samples, expected", [(1, "P:a\n"), (2, "")])
def test_an_interruption_leaves_a_whole_line_or_no_sample(samples, expected):
    written = []
    streamer = _streamer(written, samples)
    streamer.put(torch.full((samples, 2), 7))
    streamer.put(torch.full((samples,), 1))
    streamer.end()
    assert "".join(written) == expected


def test_time_that_writing_takes_is_not_the_models(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("codegen_fast.cli.stream.time.perf_counter", lambda: clock[0])

    def write(text):
        clock[0] += 100

    streamer = TextStreamer(write, "P:", 1, 9, (), lambda ids: "a" * len(ids))
    for step, ids in enumerate([torch.tensor([[7]]), torch.tensor([1]), torch.tensor([1]), torch.tensor([1])]):
        clock[0] += step + 1
        streamer.put(ids)
    assert (streamer.first_seconds, streamer.decode_seconds) == (2, 3 + 4)


@pytest.mark.parametrize("options", [{}, {"n_inner": 96}, {"tie_word_embeddings": True}, {"model_type": "gptj"}])
def test_parameters(tmp_path, options):
    reference = make_checkpoint(tmp_path, **options)
    assert parameter_count(CodeGenConfig.from_folder(tmp_path)) == reference.num_parameters()


@pytest.mark.parametrize("dtype, quantization", [
    (torch.float32, None), (torch.float16, None), (torch.bfloat16, "int8")])
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
    assert decode_bytes(config, dtype, quantization, prompt, new_tokens) == expected


@pytest.mark.parametrize("text, expected", [
    (figures.size(12), "12 B"), (figures.size(14_215_000_000), "14.2 GB"), (figures.size(4096), "4.1 kB"),
    (figures.size(123_456_789_000), "123 GB"), (figures.size(1_234e9), "1234 GB"), (figures.short(4_729_344), "4.73 M"),
    (figures.cache_size(32 << 20), "32 MiB"), (figures.rate(79.04), "79.0"), (figures.rate(1337.7), "1338"),
    (figures.count(1, "thread"), "1 thread"), (figures.count(2, "thread"), "2 threads"),
    (figures.duration(0.807), "0.81 s"), (figures.duration(0.0042), "4.2 ms"),
])
def test_figures(text, expected):
    assert text == expected
