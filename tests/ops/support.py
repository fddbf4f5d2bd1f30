"""Single operations and small models run natively on matrices that a test gives."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.models.config import LlamaConfig, RopeConfig, inv_freq
from cascade_engine.models.llama import LlamaLayer, LlamaWeights
from cascade_engine.ops import CpuBackend, LinearWeight, activation_dtype

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8


class NativePass:
    """A recorded pass whose token ids are row numbers of the test's matrices, so that
    `recorder.embedding(matrix)` hands them to any operation.

    `tokens` `[sequences, capacity]` and `block_table` `[sequences, blocks]`, int32, may be written
    between runs.
    """

    def __init__(
        self,
        isa: str,
        threads: int = 1,
        sequences: int = 1,
        capacity: int = 1024,
        pages: int = 1,
        backend: CpuBackend | None = None,
    ) -> None:
        self.recorder = (backend or CpuBackend(threads, isa)).recorder()
        self.program = self.recorder.program
        self.tokens = torch.zeros(sequences, capacity, dtype=torch.int32)
        self.block_table = torch.zeros(sequences, pages_for(capacity), dtype=torch.int32)
        self.program.bind_rows(self.tokens.data_ptr(), capacity, sequences)
        table = self.block_table
        self.program.bind_block_tables(table.data_ptr(), table.shape[1], pages)

    def feed(self, ids: Sequence[int], start: int = 0, wanted: int = 0) -> None:
        """Sequence 0 feeds `ids` at positions start.. ."""
        self.tokens[0, start : start + len(ids)] = torch.tensor(ids, dtype=torch.int32)
        self.program.run([0], [start], [len(ids)], [wanted])

    def read(self, buffer: int, dtype: torch.dtype = F32) -> torch.Tensor:
        """A copy of a buffer of either dtype, `[rows, cols]`."""
        rows, cols = self.program.rows(buffer), self.program.cols(buffer)
        if rows == 0:
            return torch.empty(0, cols, dtype=dtype)
        memory = (ctypes.c_char * (rows * cols * dtype.itemsize)).from_address(
            self.program.data(buffer)
        )
        return torch.frombuffer(memory, dtype=dtype).view(rows, cols).clone()


def cast(ops: Any, x: torch.Tensor, dtype: torch.dtype) -> Any:
    """The matrix `x` as a value of `dtype`; exact where `dtype` holds it, because
    silu(128) = 128 to the last bit."""
    return ops.swiglu(ops.embedding(torch.cat([torch.full_like(x, 128.0), x / 128.0], 1)), dtype)


def run_native(
    isa: str,
    describe: Callable[[Any], Any],
    ids: Sequence[int],
    dtype: torch.dtype = F32,
    start: int = 0,
    wanted: int = 0,
) -> torch.Tensor:
    """What `describe(recorder)` leaves in the buffer it returns."""
    native = NativePass(isa, capacity=start + len(ids))
    out = describe(native.recorder)
    native.feed(ids, start, wanted)
    return native.read(out, dtype)


def assert_close(
    ours: torch.Tensor,
    naive: torch.Tensor,
    exact: torch.Tensor,
    dtype: torch.dtype,
    what: object = "",
    by_row: bool = False,
) -> None:
    """The house tolerance, over the whole matrix or row by row: at most twice the error of a naive
    implementation in the same dtype, plus 4 units in the last place of the largest value (in
    bfloat16, where an exact value rounds once, half a unit)."""
    units = 4.0 if dtype == F32 else 0.51
    shape = (len(exact), -1) if by_row else (1, -1)
    floor = units * torch.finfo(dtype).eps * exact.abs().view(shape).amax(1)
    allowed = 2 * (naive.to(dtype).double() - exact).abs().view(shape).amax(1) + floor
    error = (ours.double() - exact).abs().reshape(shape).amax(1)
    worst = (error - allowed).nan_to_num(torch.inf).argmax()
    assert (error <= allowed).all(), (
        f"{what}: off by {error[worst]:.3g}, allowed {allowed[worst]:.3g}, row {worst}"
    )


def bits(x: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: -0.0 differs from 0.0, and a NaN equals itself."""
    return x.contiguous().view(torch.int32 if x.dtype == F32 else torch.int16)


def assert_same_bits(ours: torch.Tensor, expected: torch.Tensor, what: object = "") -> None:
    if not torch.equal(bits(ours), bits(expected)):
        differ = (bits(ours) != bits(expected)).nonzero()
        first = tuple(differ[0].tolist())
        raise AssertionError(
            f"{what}: {len(differ)} of {ours.numel()} elements differ, the first at {first}: "
            f"{ours[first].item()!r} instead of {expected[first].item()!r}"
        )


def stale_memory(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """What memory may hold that nobody wrote: NaN and infinities."""
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan, 3e38], dtype=dtype)
    size = torch.Size(shape)
    return values.repeat(size.numel() // len(values) + 1)[: size.numel()].view(size).clone()


def cached(data: torch.Tensor, table: torch.Tensor, tokens: int, kv_heads: int) -> torch.Tensor:
    """Keys and values `[layers, 2, tokens, kv_heads, head_dim]` of the sequence with the block
    table `table`, out of the pages of csrc/include/ce/types.h."""
    layers, _, _, width = data.shape
    blocks, dim = pages_for(tokens), width // kv_heads // PAGE_TOKENS
    pages = data[:, :, table[:blocks].long()]
    keys = pages[:, 0].view(layers, blocks, kv_heads, dim, PAGE_TOKENS).permute(0, 1, 4, 2, 3)
    values = pages[:, 1].view(layers, blocks, kv_heads, PAGE_TOKENS, dim).permute(0, 1, 3, 2, 4)
    both = torch.stack([keys, values], 1)
    return both.reshape(layers, 2, blocks * PAGE_TOKENS, kv_heads, dim)[:, :, :tokens]


def random_weights(seed: int, dtype: torch.dtype, **overrides: Any) -> LlamaWeights:
    """A small LLaMA in memory, with biases and odd sizes; its logits differ clearly by token.
    The packed layout is the same for every instruction set."""
    shape: dict[str, Any] = {
        "vocab_size": 130,
        "hidden_size": 45,
        "intermediate_size": 67,
        "num_layers": 2,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 10,
        "max_positions": 2048,
        "tie_word_embeddings": False,
    }
    shape.update(overrides)
    config = LlamaConfig(
        rms_norm_eps=1e-5,
        rope=RopeConfig(),
        attention_bias=True,
        mlp_bias=True,
        bos_id=None,
        eos_ids=(),
        dtype=activation_dtype(dtype),
        **shape,
    )
    torch.manual_seed(seed)
    backend, hidden, inner = CpuBackend(1), config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def linear(n: int, k: int, bias: bool = True) -> LinearWeight:
        weight = torch.randn(n, k) * 1.5 / k**0.5
        return backend.pack_linear(weight, dtype, torch.randn(n) * 0.2 if bias else None)

    layers = tuple(
        LlamaLayer(
            input_norm=1 + 0.2 * torch.randn(hidden),
            qkv=linear(queries + 2 * keys, hidden),
            output=linear(hidden, queries),
            post_attention_norm=1 + 0.2 * torch.randn(hidden),
            gate_up=linear(2 * inner, hidden),
            down=linear(hidden, inner),
        )
        for _ in range(config.num_layers)
    )
    head = linear(config.vocab_size, hidden, bias=False)
    table = torch.randn(config.vocab_size, hidden).to(activation_dtype(dtype))
    embedding = head if config.tie_word_embeddings else table
    norm = 1 + 0.2 * torch.randn(hidden)
    return LlamaWeights(config, dtype, embedding, layers, norm, head, inv_freq(config))
