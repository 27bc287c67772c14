"""What programs written for transformers do around generate: positional arguments, results, waves, scores of samples."""
from __future__ import annotations

import time
import warnings

import pytest
import torch
import transformers
from pairs import pair, quiet  # noqa: F401  (fixtures)

import codegen_fast

IDS = torch.tensor([[11, 12, 13, 14, 15]])


@pytest.mark.parametrize("knobs", [dict(), dict(num_beams=3, num_return_sequences=2, eos_token_id=[20, 21, 22, 23])])
@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores(pair, knobs, normalize):
    got = []
    for model in pair:
        out = model.generate(IDS, max_new_tokens=9, output_scores=True, return_dict_in_generate=True, pad_token_id=3, **knobs)
        got.append(model.compute_transition_scores(out.sequences, out.scores, out.beam_indices if knobs else None,
                                                   normalize_logits=normalize))  # fmt: skip
    assert got[0].shape == got[1].shape
    assert torch.allclose(got[0], got[1], atol=2e-4)
    with pytest.raises(ValueError, match="output_scores=True"):
        pair[1].compute_transition_scores(IDS, ())


@pytest.mark.parametrize("knobs", [dict(), dict(output_scores=True), dict(num_beams=2), dict(num_beams=2, output_scores=True)])
def test_results_unpack_as_theirs(pair, knobs):
    """Fields of ours are there by name and by attribute, and in no tuple."""
    theirs, ours = (model.generate(IDS, max_new_tokens=3, return_dict_in_generate=True, **knobs) for model in pair)
    missing = {"past_key_values"} if knobs.get("num_beams") else set()  # beams return no cache here
    assert [name for name in theirs if name not in missing] == list(ours)
    assert len(ours) == len(ours.to_tuple()) == len(theirs) - len(missing & set(theirs))
    assert ours.attentions is None and torch.equal(ours[0], theirs[0])
    assert ours["new_tokens"] == ours.new_tokens == [ours.sequences[0, 5:].tolist()]
    if knobs.get("num_beams"):
        assert torch.equal(ours.beam_indices.long().cpu(), theirs.beam_indices.long())


def test_positional_arguments(pair):
    config = transformers.GenerationConfig(max_new_tokens=4, pad_token_id=0)
    halve = transformers.LogitsProcessorList([lambda ids, scores: scores.flip(-1)])
    stops = transformers.StoppingCriteriaList([lambda ids, scores: torch.tensor([ids.shape[1] >= 7])])
    for arguments in ((config,), (config, halve), (config, halve, stops), (config, None, stops)):
        theirs, ours = (model.generate(IDS, *arguments) for model in pair)
        assert torch.equal(theirs, ours)


def test_what_a_tokenizer_gives_beside_prompts_of_different_lengths(pair):
    ids = [[5, 6, 7], [8]]
    got = pair[1].generate(input_ids=ids, attention_mask=[[1, 1, 1], [1]], max_new_tokens=3, pad_token_id=0)
    assert torch.equal(got, pair[1].generate(ids, max_new_tokens=3, pad_token_id=0))
    with pytest.raises(ValueError, match="or give a list of ones"):
        pair[1].generate(input_ids=ids, attention_mask=[[1, 1, 1], [0]], max_new_tokens=3, pad_token_id=0)


def test_names_that_programs_ask_for(pair):
    theirs, ours = pair
    assert ours.main_input_name == theirs.main_input_name and ours.can_generate()
    assert ours.get_memory_footprint() == ours.memory_footprint() > 0 and ours.name_or_path


def test_samples_are_scored_in_one_call(pair):
    out = pair[1].generate(IDS, do_sample=True, num_return_sequences=3, max_new_tokens=6, seed=1, pad_token_id=3,
                           return_dict_in_generate=True, return_logprobs=True, eos_token_id=list(range(30)))  # fmt: skip
    scores = pair[1].score(IDS, out.new_tokens)
    for score, row, logged in zip(scores, out.new_tokens, out.logprobs, strict=True):
        assert score.token_ids.tolist() == row
        assert torch.allclose(score.token_logprobs, torch.tensor(logged.token_logprobs), atol=1e-4)
    by_rows = pair[1].score(IDS, out.sequences[:, 5:])
    assert [len(score) for score in by_rows] == [out.sequences.shape[1] - 5] * 3


def test_a_streamer_of_several_rows_hears_columns(pair):
    """Drafts would give rows several tokens at once: with several rows they are left out, with a warning."""
    heard = []

    class Recorder:
        def put(self, tokens):
            heard.append(tokens)

        def end(self):
            pass

    ids = [[5, 6, 7, 5, 6, 7, 5], [8, 9, 8, 9, 8, 9, 8]]
    knobs = dict(max_new_tokens=9, eos_token_id=None, pad_token_id=0, prompt_lookup_num_tokens=5,
                 num_assistant_tokens_schedule="constant")
    with pytest.warns(UserWarning, match="a streamer of several rows"):
        got = pair[1].generate(ids, streamer=Recorder(), **knobs)
    assert torch.equal(torch.stack(heard[1:], 1), got[:, 7:].cpu())
    heard.clear()
    alone = pair[1].generate(ids[:1], streamer=Recorder(), **knobs)
    assert torch.equal(torch.cat(heard[1:]), alone[0, 7:].cpu())


def test_time_ends_rows_that_wait_too(pair):
    decoder = pair[1]._decoder
    ids = [[5 + i, 6, 7] for i in range(40)]
    before = decoder.prefilled_tokens
    out = pair[1].generate(ids, max_new_tokens=50, max_time=1e-9, max_batch_size=4, eos_token_id=None, pad_token_id=3,
                           return_dict_in_generate=True)
    assert decoder.prefilled_tokens - before == 4 * 3
    assert out.finish_reasons == ["time"] * 40 and [len(row) for row in out.new_tokens] == [1] * 4 + [0] * 36
    assert out.sequences.shape == (40, 4) and out.sequences[4:, 3].tolist() == [3] * 36


def test_a_stream_that_is_read_later_is_not_late(pair, tmp_path):
    from tokenizers_small import write_tokenizer

    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
    stream = pair[1].stream([[5, 6, 7]], tokenizer=tokenizer, max_new_tokens=4, max_time=5.0, eos_token_id=None)
    time.sleep(0.01)
    assert [piece.finish_reason for piece in stream][-1] == "length"


def test_warnings_point_at_the_program(pair, tmp_path):
    from tokenizers_small import write_tokenizer

    tokenizer = codegen_fast.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
    session = pair[1].session()
    for call in (lambda: pair[1].generate(IDS), lambda: list(pair[1].stream(IDS, tokenizer=tokenizer)),
                 lambda: session.generate(IDS), lambda: list(session.stream(IDS, tokenizer=tokenizer))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        assert [warning.filename for warning in caught if "transformers' default" in str(warning.message)] == [__file__]
