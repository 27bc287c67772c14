"""The CUDA emulator: every intrinsic against numpy, and the faults that it must catch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emulator import emulated
from emulator.build import HERE, mutated_module
from emulator.harness import Kernels

from codegen_fast import ops

SEEDS = range(3)
MUTATED = HERE / "kernels" / "mutated.cu"
FAULTY = HERE / "kernels" / "faulty.cu"


@pytest.fixture(scope="module", params=[90, 80])
def intrinsics(request) -> Kernels:
    return Kernels(HERE / "kernels" / "intrinsics.cu", arch=request.param)


@pytest.fixture(scope="module")
def faulty() -> Kernels:
    return Kernels(FAULTY)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- Intrinsics ----------------------------------------------------------------------------------


def test_narrowing(intrinsics):
    exponents = random().integers(-30, 20, 4000).astype(np.float32)
    x = (random(1).standard_normal(4000).astype(np.float32) * 2**exponents).astype(np.float32)
    halves = np.arange(0, 0x7C00, 7, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = ((halves[:-1].astype(np.float64) + halves[1:]) / 2).astype(np.float32)  # to even
    special = [0, -0.0, np.inf, -np.inf, np.nan, 65519, 65520, 3e38, 1e-45, 2**-25, 2**31, -(2**31)]
    x = np.concatenate([x, halves, ties, -ties, np.array(special, np.float32)])
    n = len(x)
    kinds = {"f16": "u2", "bf16": "u2", "int": "i4", "exp2": "f4", "pair": "u4"}
    out = {name: np.zeros(n, kind) for name, kind in kinds.items()}
    intrinsics.run("convert", {"x": x, **out}, (n,), grid=(n + 127) // 128, threads=128, writable=out)
    number = ~np.isnan(x)
    with np.errstate(over="ignore"):
        half, powers = x.astype(np.float16), np.exp2(x.astype(np.float64))
    integers = np.clip(np.rint(x[number].astype(np.float64)), -(2**31), 2**31 - 1)
    assert np.array_equal(out["f16"][number], half.view(np.uint16)[number]) and (out["f16"][~number] == 0x7FFF).all()
    brain = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(out["bf16"][number], brain[number]) and (out["bf16"][~number] == 0x7FFF).all()
    assert np.array_equal(out["int"][number], integers.astype(np.int32)) and (out["int"][~number] == 0).all()
    assert np.array_equal(out["pair"], out["f16"].astype(np.uint32) | 0x3C00 << 16)
    normal = number & (powers >= 2.0**-126) & (powers < 3.4e38)
    assert np.allclose(out["exp2"][normal], powers[normal], rtol=2**-22, atol=0)
    assert (out["exp2"][number & (powers < 2.0**-126)] == 0).all()


def test_widening(intrinsics):
    n = 1 << 16
    f16, bf16 = np.zeros(n, np.float32), np.zeros(n, np.float32)
    q = np.arange(256, dtype=np.uint8)
    a, b = np.zeros(256, np.uint16), np.zeros(256, np.uint16)
    intrinsics.run("widen", {"f16": f16, "bf16": bf16, "q": q, "a": a, "b": b}, grid=n // 128, threads=128,
                   writable=["f16", "bf16", "a", "b"])  # fmt: skip
    assert np.array_equal(f16, np.arange(n, dtype=np.uint16).view(np.float16).astype(np.float32), equal_nan=True)
    assert np.array_equal(bf16.view(np.uint32), np.arange(n, dtype=np.uint32) << 16)
    assert np.array_equal(a.view(np.float16), q.view(np.int8))
    assert np.array_equal(b.astype(np.uint32) << 16, q.view(np.int8).astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("seed", SEEDS)
def test_lanes(intrinsics, seed):
    v = random(seed).integers(1, 1 << 20, 64).astype(np.int32)
    out, doubles = np.zeros((64, 8), np.int32), np.zeros(64)
    longs, floats = np.zeros(64, np.int64), np.zeros(64, np.float32)
    results = {"out": out, "doubles": doubles, "longs": longs, "floats": floats}
    intrinsics.run("lanes", {"v": v, **results}, threads=64, seed=seed, writable=results)
    lane, base = np.arange(64) % 32, np.arange(64) // 32 * 32
    assert np.array_equal(out[:, 0], v[base + (lane ^ 5)])
    assert np.array_equal(out[:, 1], v[base + np.where(lane >= 3, lane - 3, lane)])
    assert np.array_equal(out[:, 2], v[base + (lane * 7 + 1) % 32])
    votes = [sum(int(v[32 * w + i] % 3 == 0) << i for i in range(32)) for w in range(2)]
    assert np.array_equal(out[:, 3].view(np.uint32), np.repeat(np.array(votes, np.uint32), 32))
    assert np.array_equal(out[:, 4], np.repeat([v[40] in v[:32], True], 32))
    assert np.array_equal(out[:, 5], [int(i).bit_count() for i in v])
    assert np.array_equal(out[:, 6], [(int(i) & -int(i)).bit_length() - 1 for i in v])
    assert np.array_equal(out[:, 7], base // 32)
    assert np.array_equal(doubles, v[base + (lane ^ 16)] * 0.1)
    assert np.array_equal(longs, v[base + (lane ^ 1)].astype(np.int64) << 33)
    assert np.array_equal(floats, v[base + np.maximum(lane - 1, 0)] * np.float32(0.5))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mma_of_16_bit_floats(intrinsics, kind):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[kind]
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(16, 16, generator=g).to(dtype), torch.randn(16, 8, generator=g).to(dtype)
    d = torch.randn(16, 8, generator=g)
    out = d.numpy().copy()
    operands = {"a": a.view(torch.int16).numpy(), "b": b.view(torch.int16).numpy()}
    intrinsics.run(f"multiply_{kind}", {**operands, "d": out}, writable=["d"])
    expected = (d.double() + a.double() @ b.double()).numpy()
    assert np.abs(out - expected).max() <= 2.0**-24 * np.abs(expected).max()


def test_mma_of_int8(intrinsics):
    a, b = random().integers(-128, 128, (16, 32), np.int8), random(1).integers(-128, 128, (32, 8), np.int8)
    d = random(2).integers(-1000, 1000, (16, 8), np.int32)
    out = d.copy()
    intrinsics.run("multiply_s8", {"a": a, "b": b, "d": out}, writable=["d"])
    assert np.array_equal(out, d + a.astype(np.int32) @ b.astype(np.int32))


def test_load_matrix(intrinsics):
    source = random().integers(0, 1 << 16, (32, 8), np.uint16)
    order = random(1).permutation(32).astype(np.int32)
    out = np.zeros((32, 10), np.uint32)
    intrinsics.run("matrices", {"source": source, "order": order, "out": out}, shared=512, writable=["out"])
    m = source[order].reshape(4, 8, 8)
    pairs = out.view(np.uint16).reshape(32, 10, 2)
    for lane in range(32):
        x, y = lane // 4, lane % 4 * 2
        assert np.array_equal(pairs[lane, :4], m[:, x, y : y + 2])
        assert np.array_equal(pairs[lane, 4:8], m[:, y : y + 2, x])
        assert np.array_equal(pairs[lane, 8:], m[:2, x, y : y + 2])


@pytest.mark.parametrize("seed", SEEDS)
def test_asynchronous_copies(intrinsics, seed):
    n, threads = 7, 64
    source = random(seed).integers(0, 1 << 32, (n * threads, 4), np.uint32)
    out = np.zeros_like(source)
    intrinsics.run("copies", {"source": source, "out": out}, (n, 430), threads=threads, shared=2 * threads * 16,
                   seed=seed, writable=["out"])  # fmt: skip
    assert np.array_equal(out[:430], source[:430]) and (out[430:] == 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_weight_stream(intrinsics, seed):
    source = random(seed).integers(0, 1 << 20, (20, 2, 64), np.uint32)
    out = np.zeros((20, 2), np.uint32)
    intrinsics.run("ring", {"weights": source, "out": out}, (20,), threads=96, shared=128 + 3 * 512, seed=seed,
                   writable=["out"], weights=["weights"])  # fmt: skip
    assert np.array_equal(out, source.sum(-1))


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers(intrinsics, seed):
    v, out = np.arange(128, dtype=np.int32), np.zeros(128, np.int32)
    intrinsics.run("halves", {"v": v, "out": out}, threads=128, shared=512, seed=seed, writable=["out"])
    assert np.array_equal(out, v.reshape(2, 64)[:, ::-1].ravel())


def test_atomics(intrinsics):
    total, largest = np.zeros(1, np.int32), np.zeros(1, np.uint32)
    blocks, released = np.zeros(5, np.uint32), np.zeros(5, np.int64)
    results = {"total": total, "largest": largest, "blocks": blocks, "released": released}
    intrinsics.run("counters", results, grid=5, threads=64, shared=16, writable=results)
    assert total[0] == 2 * 5 * 64 and largest[0] == 5 * 64 - 1
    assert (blocks == 64).all() and np.array_equal(released, 5 + np.arange(5))


def test_a_graph_replays_its_launches(intrinsics):
    weight, x, y = (random(i).standard_normal(100).astype(np.float32) for i in range(3))
    before = y.copy()
    intrinsics.run("add", {"weight": weight, "x": x, "y": y}, (100,), grid=2, threads=64, writable=["y"],
                   weights=["weight"], captured=True)  # fmt: skip
    assert np.array_equal(y, before)
    for _ in range(2):
        x += 1
        intrinsics.replay()
        assert np.array_equal(y, weight + x)


# ---- Mutants: a right kernel, a piece of its text replaced ----------------------------------------


def column_sums(kernels: Kernels, seed: int) -> bool:
    """Whether the result is right: of 70 rows and 100 columns, both of which end inside a tile."""
    x, out = random().standard_normal((70, 100)).astype(np.float32), np.zeros(100, np.float32)
    kernels.run("column_sums", {"x": x, "out": out}, (70, 100), grid=2, threads=64, shared=32 * 64 * 4, seed=seed,
                writable=["out"])  # fmt: skip
    return np.allclose(out, x.astype(np.float64).sum(0), rtol=0, atol=1e-4)


def mutant(folder, text: str, replacement: str, source=MUTATED) -> Kernels:
    original = source.read_text()
    assert original.count(text) == 1, f"{text!r} stands {original.count(text)} times in {source.name}"
    path = folder / source.name
    path.write_text(original.replace(text, replacement))
    return Kernels(path, keep=folder)


def test_the_kernel_of_the_mutants_is_right():
    kernels = Kernels(MUTATED)
    assert all(column_sums(kernels, seed) for seed in range(8))


@pytest.mark.parametrize("text", ["sync_threads();  // the tile is full", "sync_threads();  // the tile has been read"])
def test_catches_a_removed_barrier(tmp_path, text):
    kernels = mutant(tmp_path, text, "")
    fault = r"kernel column_sums, block \(\d,0,0\), thread \d+: race on shared memory .* no (sync_warp or )?barrier"
    for seed in SEEDS:
        with pytest.raises(RuntimeError, match=fault):
            column_sums(kernels, seed)


def test_catches_an_off_by_one_store(tmp_path):
    kernels = mutant(tmp_path, "if (column < columns) p.", "if (column <= columns) p.")
    who = r"kernel column_sums, block \(1,0,0\), thread 18: "
    fault = who + r"write of 4 bytes at 0x\w+, at the end of 'out' \(400 bytes\), at .*mutated.cu:\d+"
    with pytest.raises(RuntimeError, match=fault):
        column_sums(kernels, 0)


@pytest.mark.parametrize(
    "text, replacement",
    [
        ("int mask = 16;", "int mask = 8;"),
        ("int mask = 16;", "int mask = 32;"),
        ("shuffle_xor(v, mask)", "shuffle_up(v, mask)"),
    ],
)
def test_catches_a_wrong_shuffle(tmp_path, text, replacement):
    kernels = mutant(tmp_path, text, replacement)
    try:
        right = column_sums(kernels, 0)
    except RuntimeError as error:
        assert "shuffle_xor with 32, expected 0 to 31" in str(error)
    else:
        assert not right


# ---- Mutants of the real kernels -------------------------------------------------------------------


def layer_norm(columns: int = 500) -> bool:
    """Whether layer_norm is right for rows that lie 8 elements apart."""
    x = 3 * torch.randn(4, columns, generator=torch.Generator().manual_seed(0)).half()
    weight, bias = torch.linspace(0.5, 2, columns), torch.linspace(-1, 1, columns)
    out = torch.zeros(4, columns + 8, dtype=torch.float16)[:, :columns]
    ops.layer_norm(out, x, ops.Norm(weight, bias, 1e-5))
    expected = torch.nn.functional.layer_norm(x.double(), (columns,), weight.double(), bias.double(), 1e-5)
    return torch.allclose(out.double(), expected, rtol=2**-10, atol=2**-10)


def test_the_real_kernel_is_right():
    for seed in SEEDS:
        with emulated(seed):
            assert layer_norm()


REAL_MUTANTS = {  # compiled, file, text, replacement, fault (None: the result is wrong)
    "removed-barrier": (
        "embed.cu",
        "rows.cuh",
        "  sync_threads(kRowBarrier, kRowThreads);",
        "",
        "kernel layer_norm_kernel<f16>, .* race on shared memory",
    ),
    "wrong-shuffle": (
        "embed.cu",
        "rows.cuh",
        "int mask = kWarp / 2; mask; mask /= 2) v +=",
        "int mask = kWarp / 4; mask; mask /= 2) v +=",
        None,
    ),
    "off-by-one-store": (
        "embed.cu",
        "embed.cu",
        "store_columns(out, packed, first, p.columns)",
        "store_columns(out, packed, first, p.columns + 1)",
        "kernel layer_norm_kernel<f16>, .* write of 2 bytes at .*(past the end of row|the end of) .*'out'",
    ),
}


@pytest.mark.parametrize("mutation", REAL_MUTANTS)
def test_catches_in_real_kernels(tmp_path, mutation):
    *change, fault = REAL_MUTANTS[mutation]
    module = mutated_module(tmp_path, *change)
    for seed in SEEDS:
        with emulated(seed, module=module):
            if fault is None:
                assert not layer_norm()
            else:
                with pytest.raises(RuntimeError, match=fault):
                    layer_norm()


# ---- Other faults ---------------------------------------------------------------------------------

FAULTS = {
    "deadlock": r"deadlock:\n  threads 0 to 31 wait for sync_threads at tests/emulator/kernels/faulty.cu:\d+\n"
    r"  threads 32 to 63 wait for mbarrier at shared memory \+ 0 \(0 phases complete, in this one 1 of 1 arrivals "
    r"missing\) at .*faulty.cu:\d+",
    "misaligned_vector": r"thread 1: load from 0x\w+, not a multiple of 16 bytes, at .*faulty.cu:\d+",
    "misaligned_word": r"thread 0: read of 4 bytes at 0x\w+, which is misaligned, at .*faulty.cu:\d+",
    "past_the_end": r"thread 63: read of 4 bytes at 0x\w+, 4 bytes past the end of 'x' \(256 bytes\), at .*faulty.cu",
    "past_shared_memory": r"thread 63: write of 4 bytes at 0x\w+, at the end of the block's shared memory \(252 bytes",
    "writes_an_input": r"write of 4 bytes at 0x\w+, in 'x', which this op may only read",
    "null_pointer": r"read of 4 bytes at 0x0, a null pointer",
    "no_dependency_wait": r"none of its threads has called dependency_wait\(\)",
    "early_read": r"read of 4 bytes at 0x\w+, in 'x', before dependency_wait\(\)",
    "lanes_part": r"is in shuffle_up while other lanes of its warp are in shuffle_xor",
    "lanes_exit": r"exits while other lanes of its warp wait for it in ballot|ballot while \d+ lanes of the warp ",
    "stream_left_alone": r"the block ends while a stream_copy is under way",
    "reads_before_copy_wait": r"race on shared memory|NaN",
    "reads_before_stream_wait": r"race on shared memory",
    "lanes_without_sync_warp": r"race on shared memory .* no sync_warp or barrier between them",
    "another_threads_stack": r"the stack of thread 0",
    "never_ends": r"does not come to an end",
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_catches(faulty, kernel):
    x, out = np.ones(64, np.float32), np.zeros(64, np.float32)
    buffers = {"x": x, "out": out}
    shared = 252 if kernel == "past_shared_memory" else 4096
    for seed in SEEDS if kernel != "never_ends" else [0]:
        with pytest.raises(RuntimeError, match=FAULTS[kernel]):
            faulty.run(kernel, buffers, threads=64, shared=shared, seed=seed, writable=["out"])
    faulty.run("right", buffers, threads=64, shared=4096, writable=["out"])  # the engine goes on as if nothing had been
    assert (out == 2).all()


def test_early_data_is_poison(faulty):
    """Who reads a copy that is under way gets NaN, also where the race would go unnoticed (one lane, one thread)."""
    x, out = np.ones(64, np.float32), np.zeros(64, np.float32)
    faulty.run("own_copy_too_early", {"x": x, "out": out}, threads=64, shared=4096, writable=["out"])
    assert np.isnan(out).all()
