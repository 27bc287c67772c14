"""python -m bench.cpu: its statistics by example, its tables, and a run of the demo model without peers.

No figure in here is a measurement.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.cpu import __main__ as command  # noqa: E402
from bench.cpu import catalogue, gates, parts, plots, report, results, rounds, tables  # noqa: E402
from bench.cpu.ceiling import beside, thread_counts  # noqa: E402
from bench.cpu.formats.ggml import encode_blocks  # noqa: E402
from bench.cpu.kernels import phases_of  # noqa: E402
from bench.cpu.pool import EngineFailed, Worker, held_bytes  # noqa: E402
from bench.cpu.residents import Residents, compare, step_bytes  # noqa: E402
from bench.cpu.stages import by_stage  # noqa: E402
from codegen_fast import ops  # noqa: E402
from codegen_fast.demo import demo_model_path  # noqa: E402

INT8, PEER, OTHER = "codegen_fast int8", "ctransformers q8_0", "CTranslate2 float32"
MODEL = {
    "name": "350M",
    "n_layer": 20,
    "n_head": 16,
    "n_embd": 1024,
    "inner": 4096,
    "vocab": 51200,
    "n_positions": 2048,
}


def ceiling_rows(best):
    return [{"pattern": "sum", "threads": 2, "bytes_per_second": best}]


def engine(name, type, ours=False, **values):
    return {
        "name": name,
        "type": type,
        "ours": ours,
        "status": "measured",
        "reason": None,
        "notes": {},
        "quality": {},
        "settings": {},
        "versions": {},
        "step_weight_bytes": 300e6,
        "cache_bytes_per_token": 0.0,
        **values,
    }


def make_result(seconds, ceilings=(30e9, 30e9), part="decode", context=32):
    """seconds: engine -> those of a step in every round."""
    result = results.new_result(
        {"cpu": "a CPU", "threads": 2, "isa": "avx2", "cache_bytes": 32 << 20}, dict(MODEL), {"steps": 24}
    )
    types = {entry.name: entry.type for entry in catalogue.ENGINES.values()}
    result["engines"] = [engine(name, types[name], name.startswith("codegen_fast")) for name in seconds]
    result["rounds"][part] = [
        {"round": n, "rows": ceiling_rows(best), "best": best, "worst": best} for n, best in enumerate(ceilings)
    ]
    result["samples"] = [
        {"part": part, "engine": name, "batch": 1, "context": context, "round": n, "seconds": [second] * 3}
        for name, each in seconds.items()
        for n, second in enumerate(each)
    ]
    return result


def figure(result, text):
    (verdict,) = [verdict for verdict in gates.evaluate(result) if text in verdict.gate.text]
    return verdict


# ---- Statistics by example ----


def test_engines_take_turns():
    assert rounds.in_turns(["a", "b", "c"], 3) == [["a", "b", "c"], ["c", "b", "a"], ["a", "b", "c"]]


def test_a_round_has_the_better_ceiling_of_before_and_after():
    measured, visits = iter([10.0, 30.0, 20.0]), []
    run = rounds.run(
        ["a", "b"], 2, lambda name, number: visits.append((name, number)), lambda: ceiling_rows(next(measured))
    )
    found = list(run)
    assert [(each["best"], each["worst"]) for each in found] == [(30, 10), (30, 20)]
    assert visits == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]


class OneEngine:
    """Stands for Residents: an engine whose every visit takes the next of these seconds."""

    def __init__(self, seconds: list[float]) -> None:
        self.names, self.rows, self._seconds = [INT8], {INT8: {"notes": {}}}, iter(seconds)

    def attempt(self, name, visit):
        visit(self)

    def ask(self, what, steps, **_):
        return {"seconds": [1.0] + [next(self._seconds)] * (steps - 1) if steps > 3 else [1.0]}


@pytest.mark.parametrize(("moments", "kept", "ceiling", "steady"), [
    ([60, 58], 0.1, 60, True),
    ([60, 34, 34, 35], 0.2, 35, True),
    ([60, 34, 34, 60, 60, 34], 0.3, 60, False),
])  # fmt: skip
def test_a_visit_is_made_again_where_the_ceiling_changed_during_it(moments, kept, ceiling, steady):
    result = make_result({INT8: []})
    result["settings"].update(decode=[(1, 32)], steps=5, rounds=1)
    run = parts.Run(result, OneEngine([0.1, 0.2, 0.3]), None, lambda text: None)
    told = iter(moments)
    run.moment, run.measure_ceiling = lambda: next(told) * 1e9, lambda: ceiling_rows(60e9)
    run.decode()
    (sample,) = result["samples"]
    assert (sample["seconds"], sample["ceiling"], sample["steady"]) == ([kept] * 5, ceiling * 1e9, steady)
    assert next(told, None) is None
    assert ("changed during every visit of " + INT8 in tables.terminal(result)) is not steady


def test_a_share_is_of_the_ceiling_beside_it():
    # 300 MB in 12.5 ms are 24 GB/s; in 11.1 ms, 27.
    result = make_result({INT8: [300e6 / 24e9, 300e6 / 27e9]})
    (row,) = report.rows(result, "decode")
    assert row.share == pytest.approx((24 / 30 + 27 / 30) / 2)
    result["samples"][0]["ceiling"] = 24e9
    assert report.rows(result, "decode")[0].share == pytest.approx((1 + 27 / 30) / 2)
    assert row.limit == pytest.approx(100) and row.marks == ("best of all", "best int8")


def test_rounds_with_a_low_ceiling_are_flagged():
    result = make_result({INT8: [0.01, 0.02, 0.03]}, ceilings=(30e9, 20e9, 30e9))
    assert report.flagged(result, "decode") == {1}
    assert "decode: rounds 2 had under 75% of the best ceiling" in tables.terminal(result)
    result["rounds"]["decode"].pop()  # interrupted in the last round: what it had measured does not count
    assert report.medians(result, "decode") == {(INT8, 1, 32): {0: 0.01, 1: 0.02}}


def test_what_reads_more_than_105_percent_of_the_ceiling_makes_the_run_invalid():
    within, above = (make_result({INT8: [300e6 / rate] * 2}) for rate in (31.4e9, 31.6e9))
    assert report.impossible(within) == [] and figure(within, "above 105%").outcome == "pass"
    assert report.impossible(above) == [f"{INT8} at batch 1, context 32 reads 105% of the ceiling"]
    assert figure(above, "above 105%").outcome == "FAIL"
    assert "INVALID: " in tables.terminal(above)
    above["machine"]["cache_bytes"] = 512 << 20  # then it is not read from memory
    assert report.impossible(above) == []


def test_ratios_are_taken_side_by_side():
    """Of visits with the same memory: in the same round, else in others, else none."""
    result = make_result({INT8: [0.010, 0.020, 0.010], PEER: [0.040, 0.030, 0.015]}, ceilings=(60e9,) * 3)
    ours, peer = (INT8, 1, 32), (PEER, 1, 32)
    beside = {INT8: (60e9, 30e9, 61e9), PEER: (31e9, 32e9, 58e9)}
    for sample in result["samples"]:
        sample["ceiling"] = beside[sample["engine"]][sample["round"]]
    # Ours of round 1 has a counterpart in round 3, the others in their own.
    ratio = report.ratio(result, "decode", ours, peer)
    assert (ratio.value, ratio.agree, ratio.rounds) == (pytest.approx(1.5), 3, 3)
    fast, slow = report.speeds(result, "decode")
    assert (fast.name, fast.slowest, fast.fastest, slow.name) == ("fast", 58e9, 61e9, "slow")
    assert report.tokens_per_second(result, "decode", ours, fast) == (pytest.approx(100), 2)
    assert report.tokens_per_second(result, "decode", peer, slow) == (pytest.approx(1 / 0.035), 2)
    text = tables.terminal(result)
    assert "at 58 to 61 GB/s" in text and "at 30 to 32 GB/s" in text and "28.6 (2)" in text
    (changed,) = [s for s in result["samples"] if s["engine"] == PEER and s["round"] == 2]
    changed["steady"] = False  # it had the only ceiling like those of ours in rounds 1 and 3
    ratio = report.ratio(result, "decode", ours, peer)
    assert (ratio.value, ratio.agree, ratio.rounds) == (pytest.approx(1.5), 1, 1)
    assert report.tokens_per_second(result, "decode", peer, report.speeds(result, "decode")[0]) is None
    for sample in result["samples"]:
        sample["ceiling"] = 60e9 if sample["engine"] == INT8 else 30e9
    assert report.ratio(result, "decode", ours, peer) is None
    assert report.nearest_peer(result, "decode", ours, "int8") is None
    assert figure(result, "decode int8, batch 1, context 32: over the best int8 peer").measured == "not measured"
    (row, *_) = [row for row in report.rows(result, "decode") if row.ours]
    assert tables._over_peers(result, "decode", row) == ["", ""]


def test_ratios_are_taken_within_rounds():
    result = make_result({INT8: [0.01, 0.04, 0.01], PEER: [0.02, 0.08, 0.03]}, ceilings=(30e9,) * 3)
    ratio = report.ratio(result, "decode", (INT8, 1, 32), (PEER, 1, 32))
    assert (ratio.value, ratio.agree, ratio.rounds, ratio.is_tie) == (pytest.approx(2), 3, 3, False)
    assert figure(result, "decode int8, batch 1, context 32: over the best int8 peer").outcome == "pass"
    assert figure(result, "decode int8, batch 1, context 512: over the best int8 peer").measured == "not measured"


@pytest.mark.parametrize(
    "value, agree, count, tie",
    [(1.1, 4, 4, True), (1.1, 6, 6, False), (1.1, 5, 6, True), (1.2, 1, 1, False), (0.8, 2, 2, False)],
)
def test_small_differences_are_ties_unless_many_rounds_agree(value, agree, count, tie):
    assert report.Ratio(value, agree, count).is_tie is tie


def test_the_best_of_the_own_type_and_of_all():
    result = make_result({INT8: [0.010, 0.010], PEER: [0.020, 0.020], OTHER: [0.015, 0.015]})
    assert report.nearest_peer(result, "decode", (INT8, 1, 32), "int8")[0] == PEER
    assert report.nearest_peer(result, "decode", (INT8, 1, 32), None)[0] == OTHER
    assert report.nearest_peer(result, "decode", (INT8, 1, 32), "int4") is None
    assert "apart by how fast" not in tables.terminal(result)
    marks = {row.engine: row.marks for row in report.rows(result, "decode")}
    assert marks == {INT8: ("best of all", "best int8"), PEER: (), OTHER: ("best float32",)}


def test_prefill_gates():
    result = make_result({INT8: [1.0, 1.0], PEER: [1.2, 1.2]}, part="prefill", context=512)
    verdict = figure(result, "prefill of 512 tokens, int8: over the best int8 peer")
    assert (verdict.measured, verdict.needs, verdict.outcome) == ("1.20 x", "at least 1.30 x", "FAIL")


def test_gates_of_cold_processes_quality_and_stages():
    result = make_result({INT8: [0.01, 0.01], PEER: [0.02, 0.02]})
    result["cold_reads"] = [{"seconds": 1.0, "nbytes": 7e8}]
    result["cold"] = [
        {
            "engine": INT8,
            "load_seconds": 1.5,
            "whole_seconds": 3.5,
            "torch_seconds": 1.0,
            "import_seconds": 1.1,
            "first_token_seconds": 0.1,
            "peak_bytes": 4e8,
        }
    ]
    for row, error in zip(result["engines"], (1.6e-2, 2.4e-2)):
        row["quality"] = {"prefill": {"relative_rms_error": error, "same_best_token": 1.0, "kl": 0.0}}
    result["stages"] = [
        {
            "engine": INT8,
            "batch": 1,
            "context": 32,
            "steps": [0.01],
            "timed": [0.01, 0.01],
            "ops": {"input_product": 0.0097, "attention": 0.0001},
        }
    ]
    assert figure(result, "load into int8").measured == "1.50 x"
    assert figure(result, "first token").outcome == "FAIL"
    assert figure(result, "relative RMS error").outcome == "pass"
    assert figure(result, "error of the best int8 peer over ours").measured == "1.50 x"
    verdict = figure(result, "not a product, of a step at context 32")
    assert (verdict.measured, verdict.outcome) == ("3.0%", "pass")
    text = tables.markdown(result)
    for word in ("reading the checkpoint once (700 MB)", "1.6e-02", "97.0%", "**Gates**"):
        assert word in text


def test_gates_are_the_models_own():
    result = make_result({INT8: [0.01, 0.01]})
    assert len(gates.evaluate(result)) > 20
    result["model"]["name"] = "6B"
    assert [verdict.gate.text for verdict in gates.evaluate(result)] == [
        "decode int8, batch 1, context 32: share of the read bandwidth",
        "decode int8, batch 1, context 512: share of the read bandwidth",
        "engines above 105% of the ceiling",
    ]


def test_logits_are_compared_by_their_relative_error():
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], dtype=np.float32)
    found = compare(reference + np.array([[0.5, 0], [0, 0]], dtype=np.float32), reference)
    assert found["relative_rms_error"] == pytest.approx(0.1) and found["same_best_token"] == 1 and found["kl"] > 0
    assert compare(reference, reference) == {"relative_rms_error": 0, "same_best_token": 1, "kl": 0}


def test_bytes_of_a_step_are_what_each_engine_stores():
    weights = 20 * 12 * 1024**2 + 51200 * 1024
    vectors = 4 * (20 * 7 * 1024 + 2 * 1024 + 51200)
    assert step_bytes(catalogue.ENGINES[OTHER], MODEL) == (4 * weights + vectors, 2 * 20 * 1024 * 4)
    assert step_bytes(catalogue.ENGINES[PEER], MODEL) == (weights * 34 / 32 + vectors, 2 * 20 * 1024 * 2)


def test_few_rows_are_steps_and_many_a_prompt():
    assert [phases_of(n) for n in (1, 16, 64)] == [("decode",), ("decode", "prefill"), ("prefill",)]
    assert [thread_counts(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_product_is_measured_again_where_the_ceiling_changed_meanwhile():
    moments, found = iter([60, 34, 34, 35]), iter("ab")
    assert beside(lambda: next(found), lambda: next(moments)) == ("b", 35, True)
    moments, found = iter([60, 34] * 3), iter("abc")
    assert beside(lambda: next(found), lambda: next(moments)) == ("c", 60, False)


def test_what_no_op_takes_is_pythons():
    stages = by_stage({"lm_head": 0.5, "input_product": 0.25, "sample": 0.1, "copy_pages": 0.05}, 1.0)
    assert stages["products"] == 0.75 and stages["other ops"] == 0.05 and stages["Python"] == pytest.approx(0.1)


def test_ops_are_timed_in_the_block_only():
    import torch

    x, norm = torch.randn(2, 64), ops.Norm(torch.ones(64), torch.zeros(64), 1e-5)
    graph = ops.new_graph(x)
    with ops.recorded(graph):
        ops.layer_norm(x, x, norm)
    with ops.timed() as seconds:
        ops.layer_norm(x, x, norm)
        once = seconds()
        assert once["layer_norm"] > 0 and once["embed"] == 0
        graph.replay()
        twice = seconds()
        assert twice["layer_norm"] > once["layer_norm"]
    ops.layer_norm(x, x, norm)
    with ops.timed() as seconds:
        assert not any(seconds().values())


def test_ggml_blocks_give_back_the_weights():
    weights = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    eight = encode_blocks(weights, "q8_0")
    scale = eight[:, :2].copy().view("<f2").astype(np.float32)
    assert eight.shape == (8, 34)
    assert np.abs(scale * eight[:, 2:].view(np.int8) - weights.reshape(8, 32)).max() < 0.02
    four = encode_blocks(weights, "q4_0")
    scale, codes = four[:, :2].copy().view("<f2").astype(np.float32), four[:, 2:]
    values = scale * (np.concatenate((codes & 15, codes >> 4), axis=1).astype(np.float32) - 8)
    assert four.shape == (8, 18) and np.abs(values - weights.reshape(8, 32)).max() < 0.36


# ---- Workers ----


def test_an_absent_peer_is_named_with_what_it_needs(tmp_path):
    entries = [catalogue.ENGINES[PEER]]
    residents = Residents(entries, {PEER: None}, tmp_path, tmp_path, 1, MODEL, 1 << 30)
    residents.prepare([], lambda name: None)
    result = make_result({INT8: [0.01, 0.01]})
    result["engines"] += residents.rows.values()
    assert residents.names == []
    assert f"{PEER}" in tables.terminal(
        result
    ) and "no interpreter has torch, safetensors, ctransformers" in tables.terminal(result)


def test_an_engine_that_fails_is_named_with_its_reason(tmp_path):
    interpreters = {INT8: sys.executable}  # transformers would fail alike, and takes longer to import
    residents = Residents([catalogue.ENGINES[INT8]], interpreters, tmp_path / "nowhere", tmp_path, 1, MODEL, 1 << 30)
    residents.prepare([], lambda name: None)
    row = residents.rows[INT8]
    assert row["status"] == "failed" and "nowhere" in row["reason"] and residents.names == []


def test_a_worker_that_dies_says_its_last_words():
    with Worker(sys.executable, ["no engine", ".", "1", "."], 1) as worker:
        with pytest.raises(EngineFailed, match="its process ended with 1: KeyError: 'no engine'"):
            worker.ask("load")


def test_held_memory_is_this_processs():
    assert 10 << 20 < held_bytes() < 1 << 36


def test_unknown_engines_and_interpreters_are_refused():
    with pytest.raises(ValueError, match="--engines vllm: no engine's name holds it"):
        catalogue.chosen(["vllm"], peers=True, kinds=["int8"])
    with pytest.raises(OSError, match="--peer-python /no/python"):
        catalogue.interpreters([catalogue.ENGINES[PEER]], ["/no/python"])
    assert [entry.name for entry in catalogue.chosen([], peers=False, kinds=["int8"])] == [INT8]


class NoCeiling(Worker):
    """Measures no bandwidth: that takes a gigabyte."""

    def __init__(self, python, arguments, threads):
        assert arguments[0] == "ceiling"

    def ask(self, do, **request):
        return {"rows": ceiling_rows(30e9), "bytes_per_second": 30e9}

    def close(self):
        pass


def test_a_run_of_the_demo_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "Worker", NoCeiling)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(results, "path_of", lambda name: tmp_path / "results" / f"{name}.json")
    monkeypatch.setattr(plots, "draw", lambda result, name: [])
    monkeypatch.chdir(ROOT)
    command.main(
        [
            str(demo_model_path()),
            "--short",
            "--no-peers",
            "--kinds",
            "int8",
            "--rounds",
            "2",
            "--steps",
            "3",
            "--decode",
            "1x8",
            "8x8",
            "--prefill",
            "16",
            "--threads",
            "1",
            "--parts",
            "decode",
            "prefill",
            "stages",
            "cold",
            "--cold-rounds",
            "1",
            "--work",
            str(tmp_path),
            "--save",
            "trial",
        ]
    )
    printed = capsys.readouterr().out
    text = (tmp_path / "results" / "trial.json").read_text()
    result = json.loads(text)
    assert str(tmp_path) not in text and sys.executable not in text  # nothing of this machine's folders
    (row,) = result["engines"]
    assert row["status"] == "measured" and row["versions"]["torch"] and row["settings"]["threads"] == 1
    assert {(sample["part"], sample["batch"], len(sample["seconds"])) for sample in result["samples"]} == {
        ("decode", 1, 3),
        ("decode", 8, 3),
        ("prefill", 1, 1),
    }
    assert len(result["rounds"]["decode"]) == 2 and len(result["cold"]) == 1 and len(result["cold_reads"]) == 1
    (stage, _) = result["stages"]
    assert {"input_product", "attention", "output_product", "lm_head", "sample"} <= set(stage["ops"])
    for title in (
        "Decode, a step at a time",
        "Prefill, to the first token",
        "A cold process",
        "Where a step's time goes",
    ):
        assert title in printed
    assert command.main(["--render", "trial"]) == 0
    assert "| codegen_fast int8 | 1 | 8 |" in capsys.readouterr().out
