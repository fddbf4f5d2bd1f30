"""What a recorded pass refuses, in which words, and that it stays usable afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cascade_engine import _C
from cascade_engine.models import llama
from cascade_engine.ops import CacheLayer, CpuBackend
from tests.ops.support import (
    BF16,
    F32,
    I8,
    NativePass,
    assert_same_bits,
    random_weights,
    stale_memory,
)

SEQUENCES, CAPACITY, PAGES = 2, 64, 9


class Model:
    """A small model bound to two sequences of 64 tokens and nine pages."""

    def __init__(self) -> None:
        weights = random_weights(0, F32)
        config = weights.config
        self.native = NativePass("", 2, SEQUENCES, CAPACITY, PAGES)
        self.native.block_table[:] = torch.arange(8).view(2, 4)
        width = config.num_kv_heads * config.head_dim * 16
        data = stale_memory((config.num_layers, 2, PAGES, width), F32)
        recorder = self.native.recorder
        cache = recorder.cache_layers(data, config.num_kv_heads, config.head_dim)
        self.logits = llama.forward(recorder, weights, cache)
        self.run = self.native.program.run

    def good_pass(self) -> torch.Tensor:
        self.native.block_table[:] = torch.arange(8).view(2, 4)
        self.native.tokens[:] = torch.arange(128).view(2, 64)
        self.run([1, 0], [0, 0], [20, 5], [20, 5])
        return self.native.read(self.logits)


def bad_token(model: Model, token: int) -> None:
    model.native.tokens[0, 7] = token
    model.run([1, 0], [0, 0], [5, 9], [1, 1])


def bad_page(model: Model, page: int) -> None:
    model.native.block_table[1, 2] = page
    model.run([0, 1], [0, 0], [5, 40], [1, 1])


BIG = 2**31 - 1
LISTS = "rows, starts, counts and logits must have one entry per sequence"
PAST_ROW_0 = r" 0 ends at \d+, past its .*capacity"
REFUSED: list[tuple[Any, str]] = [
    (lambda m: bad_token(m, 130), "token id 130 is outside the vocabulary of 130"),
    (lambda m: bad_token(m, -1), "token id -1 is outside the vocabulary of 130"),
    (lambda m: bad_token(m, BIG), f"token id {BIG} is outside the vocabulary of 130"),
    (lambda m: bad_page(m, -1), "row 1: block 2 names page -1 of 9"),
    (lambda m: bad_page(m, 9), "row 1: block 2 names page 9 of 9"),
    (lambda m: m.run([0, 1], [0], [1, 1], [1, 1]), LISTS),
    (lambda m: m.run([0], [0], [1, 1], [1]), LISTS),
    (lambda m: m.run([0], [0], [1], []), LISTS),
    (lambda m: m.run([2], [0], [1], [1]), r"row 2 is outside 0\.\.1"),
    (lambda m: m.run([-1], [0], [1], [1]), r"row -1 is outside 0\.\.1"),
    (lambda m: m.run([0], [-1], [1], [1]), "sequence 0: start -1, count 1, logits 1"),
    (lambda m: m.run([0], [0], [0], [0]), "sequence 0: start 0, count 0, logits 0"),
    (lambda m: m.run([0], [0], [-3], [0]), "sequence 0: start 0, count -3, logits 0"),
    (lambda m: m.run([0], [0], [2], [3]), "sequence 0: start 0, count 2, logits 3"),
    (lambda m: m.run([0], [0], [2], [-1]), "sequence 0: start 0, count 2, logits -1"),
    (lambda m: m.run([0], [60], [5], [1]), PAST_ROW_0),
    (lambda m: m.run([0], [BIG], [1], [1]), PAST_ROW_0),
    (lambda m: m.run([0], [5], [BIG], [1]), PAST_ROW_0),
    (lambda m: m.run([0, 1], [0, 64], [50, 1], [50, 1]), " 1 ends at 65, past its"),
]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_bad_pass_is_refused(model: Model, case: int) -> None:
    """Breaks when a check goes missing (then memory out of bounds is read) or its words change."""
    attempt, words = REFUSED[case]
    expected = model.good_pass()
    with pytest.raises(ValueError, match=words):
        attempt(model)
    assert_same_bits(model.good_pass(), expected, "the pass after the error")


def test_an_empty_pass_computes_nothing(model: Model) -> None:
    expected = model.good_pass()
    model.run([], [], [], [])
    assert model.native.read(model.logits).shape == (0, 130)
    assert_same_bits(model.good_pass(), expected)


def test_results_stay_readable_after_an_error(model: Model) -> None:
    """A refused pass must not claim rows that its buffers do not have."""
    model.native.tokens[:] = 0
    model.run([0], [0], [1], [1])
    with pytest.raises(ValueError, match=" 1 ends at 65, past its"):
        model.run([0, 1], [0, 64], [50, 1], [50, 1])
    assert model.native.program.rows(model.logits) <= 1


def test_nothing_bound() -> None:
    program = CpuBackend(1).recorder().program
    with pytest.raises(ValueError, match="bind_rows and bind_block_tables come before run"):
        program.run([0], [0], [1], [1])


class Recording:
    """A program with buffers of several kinds, and weights that fit some of them."""

    def __init__(self) -> None:
        self.backend = CpuBackend(1)
        self.program = NativePass("", backend=self.backend).program
        buffer, f32, bf16 = self.program.buffer, _C.DType.f32, _C.DType.bf16
        self.x8, self.x9, self.x16 = (buffer(f32, cols) for cols in (8, 9, 16))
        self.b8 = buffer(bf16, 8)
        self.wanted8 = buffer(f32, 8, per_logit=True)
        self.keep = [torch.zeros(4000), torch.zeros(4000, dtype=torch.bfloat16)]
        self.norm = self.keep[0].data_ptr()
        self.w8 = self.backend.empty_linear(8, 8, F32)
        self.w8b = self.backend.empty_linear(8, 8, BF16)
        self.w8i = self.backend.empty_linear(8, 8, I8)

    def cache(self, kv_heads: int, dim: int) -> CacheLayer:
        return CacheLayer(self.norm, self.norm, _C.DType.f32, kv_heads, dim)


MISFITS: list[tuple[Any, str]] = [
    (
        lambda r, p: p.embedding(r.x9, r.w8.handle, True),
        r"embedding out: buffer \d+ has 9 columns, expected 8",
    ),
    (
        lambda r, p: p.embedding(r.b8, r.w8.handle, True),
        r"embedding out: buffer \d+ has another dtype",
    ),
    (lambda r, p: p.embedding(99, r.w8.handle, True), "embedding out: no buffer 99"),
    (lambda r, p: p.rms_norm(r.x9, r.x8, r.norm, 1e-5), "rms_norm out: .* 9 columns, expected 8"),
    (lambda r, p: p.rms_norm(r.x8, r.b8, r.norm, 1e-5), "rms_norm x: .* another dtype"),
    (lambda r, p: p.rms_norm(r.x8, 99, r.norm, 1e-5), "no buffer 99"),
    (lambda r, p: p.rms_norm(99, r.x8, r.norm, 1e-5), "no buffer 99"),
    (lambda r, p: p.linear(r.x9, r.x8, r.w8.handle), "linear y: .* 9 columns, expected 8"),
    (lambda r, p: p.linear(r.x8, r.x9, r.w8.handle), "linear x: .* 9 columns, expected 8"),
    (lambda r, p: p.linear(r.x8, r.x16, r.w8.handle), "linear x: .* 16 columns, expected 8"),
    (lambda r, p: p.linear(r.x8, r.x8, r.w8b.handle), "linear x: .* another dtype"),
    (lambda r, p: p.linear(r.x9, r.x8, r.w8i.handle), "linear y: .* 9 columns, expected 8"),
    (lambda r, p: p.linear(r.x8, r.x8, r.w8i.handle), "linear x: .* another dtype"),
    (lambda r, p: p.embedding(r.x8, r.w8i.handle, False), "an i8 table must be packed"),
    (lambda r, p: p.buffer(_C.DType.i8, 8), "a buffer is f32 or bf16, not i8"),
    (lambda r, p: p.buffer(_C.DType.coded, 8), "a buffer is f32 or bf16"),
    (lambda r, p: CacheLayer(r.norm, r.norm, _C.DType.i8, 1, 4), "f32 or bf16, not i8"),
    (lambda r, p: _C.PackedMatrix(r.norm, _C.DType.i8, 8, 8), "has scales when it is i8"),
    (lambda r, p: _C.PackedMatrix(r.norm, _C.DType.f32, 8, 8, r.norm), "and only then"),
    (lambda r, p: p.linear(r.x8, r.x8, r.w8.handle), "linear: y and x are the same buffer"),
    (lambda r, p: p.linear(r.x8, -1, r.w8.handle), "linear x: no buffer -1"),
    (lambda r, p: p.linear(r.wanted8, r.x8, r.w8.handle), "linear.* per_logit"),
    (lambda r, p: p.rms_norm(r.wanted8, r.x8, r.norm, 1e-5), "rms_norm.* per_logit"),
    (lambda r, p: p.rope_angles(r.norm, 7), "head_dim must be even, got 7"),
    (lambda r, p: p.rope_store(r.x16, 3, r.cache(1, 4)), "rope_store qkv: .* expected 20"),
    (
        lambda r, p: (p.rope_angles(r.norm, 2), p.rope_store(r.x16, 2, r.cache(1, 4))),
        "rope_store: .* head_dim",
    ),
    (
        lambda r, p: p.attention(r.x8, r.x16, 3, 1.0, r.cache(2, 2)),
        "3 heads are not a multiple of 2 key/value heads",
    ),
    (lambda r, p: p.attention(r.x9, r.x16, 2, 1.0, r.cache(1, 4)), "attention out: .* expected 8"),
    (lambda r, p: p.attention(r.x8, r.x9, 2, 1.0, r.cache(1, 4)), "attention qkv: .* expected 16"),
    (lambda r, p: p.attention(99, r.x16, 2, 1.0, r.cache(1, 4)), "no buffer 99"),
    (lambda r, p: p.swiglu(r.x9, r.x16), "swiglu gate_up: .* 16 columns, expected 18"),
    (lambda r, p: p.swiglu(99, r.x16), "no buffer 99"),
    (lambda r, p: p.select_logit_rows(r.x8, r.x8), r"buffer \d+ must be per_logit"),
    (lambda r, p: p.select_logit_rows(r.wanted8, r.x9), "select_logit_rows out: .* expected 9"),
    (lambda r, p: p.buffer(_C.DType.f32, 0), "a buffer needs cols > 0, got 0"),
    (lambda r, p: p.cols(99), "no buffer 99"),
    (lambda r, p: p.rows(99), "no buffer 99"),
    (lambda r, p: p.data(99), "no buffer 99"),
    (lambda r, p: r.cache(0, 4), "kv_heads > 0 and head_dim > 0, got 0 and 4"),
]


@pytest.mark.parametrize("case", range(len(MISFITS)))
def test_what_does_not_fit_is_refused_while_recording(case: int) -> None:
    """Breaks when a buffer of another width, dtype or kind is taken: its memory would overflow."""
    recording = Recording()
    attempt, words = MISFITS[case]
    with pytest.raises(ValueError, match=words):
        attempt(recording, recording.program)


def test_unknown_instruction_set() -> None:
    with pytest.raises(ValueError, match="instruction set 'sse9' is unknown or not supported"):
        CpuBackend(1, "sse9")
