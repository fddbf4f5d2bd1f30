"""A T5 with its cache, as a level of the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.levels.neural import NeuralLevel
from cascade_engine.levels.rows import TokenRows
from cascade_engine.models import t5
from cascade_engine.models.t5 import T5Weights
from cascade_engine.ops import CpuBackend, CudaBackend


class EncoderDecoderLevel(NeuralLevel):
    """Runs the encoder once for a row, then reviews as any level does.

    The leading `rows.sources[slot]` tokens of a row are its source, the encoder's input; the
    decoder's tokens follow. In the level's pages the source's slots hold the cross-attention keys
    and values of its tokens, the slots behind them those of the decoder's own. So a fork shares
    what the encoder left, and a rollback, which never reaches back into the source, leaves it as
    it is. A source is cached whole or not at all.
    """

    weights: T5Weights

    def __init__(
        self,
        name: str,
        weights: T5Weights,
        backend: CpuBackend | CudaBackend,
        rows: TokenRows,
        context: int,
        tokens: int,
        vocab_size: int,
        left_padded: bool = False,
    ) -> None:
        super().__init__(name, weights, backend, rows, context, tokens, vocab_size, left_padded)
        config = weights.config
        self._encoder_recorder = backend.recorder()
        layers = self._encoder_recorder.cache_layers(
            self.storage.data, config.num_kv_heads, config.head_dim
        )
        self._encoded = t5.encode(self._encoder_recorder, weights, list(layers))
        self._encoder = self._encoder_recorder.program
        num_rows, capacity = rows.tokens.shape
        self._encoder.bind_rows(rows.tokens.data_ptr(), capacity, num_rows)
        programs: tuple[Any, ...] = (self._encoder, self._program)
        for program in programs:
            program.bind_sources(rows.sources.data_ptr())
        table = self.table.block_table
        self._encoder.bind_block_tables(table.data_ptr(), table.shape[1], self.table.pages)

    def _forward(self, ops: Any, layers: Any) -> Any:
        return t5.decode(ops, self.weights, layers)

    def prefill(self, slot: int, tokens: int) -> None:
        """Caches the row's leading `tokens` tokens, its source always as a whole."""
        self.encode([slot])
        super().prefill(slot, tokens)

    def truncate(self, slot: int, tokens: int) -> None:
        """Rollback; a row that is cut within its source has nothing cached."""
        super().truncate(slot, tokens if tokens >= self._source(slot) else 0)

    def encode(self, slots: Sequence[int]) -> None:
        """One pass of the encoder over the sources of those of these rows that lack it; a source
        that another row has or gets is shared with it."""
        lacking = [slot for slot in slots if self.table.length[slot] < self._source(slot)]
        if not lacking:
            return
        known = {
            self._source_tokens(slot): slot
            for slot, length in enumerate(self.table.length)
            if length and length >= self._source(slot)
        }
        fresh = []
        for slot in lacking:
            if known.setdefault(self._source_tokens(slot), slot) == slot:
                fresh.append(slot)
        if fresh:
            self._encode(fresh)
        for slot in lacking:
            twin = known[self._source_tokens(slot)]
            if twin != slot:
                self.table.truncate(slot, 0)
                self.fork(twin, slot, self._source(slot))

    def _encode(self, slots: list[int]) -> None:
        counts = [self._source(slot) for slot in slots]
        for slot, count in zip(slots, counts, strict=True):
            self.table.reserve(slot, count, self.storage.copy_page)
        nothing = [0] * len(slots)
        self._encoder.run(slots, nothing, counts, nothing, self.left_padded)
        for slot, count in zip(slots, counts, strict=True):
            self.table.length[slot] = count

    def encoder_output(self) -> torch.Tensor:
        """What the last pass of the encoder gave, `[tokens, hidden]`, as the decoder reads it. For
        tools and tests."""
        return self._encoder_recorder.read(self._encoded, self.weights.activation_dtype)

    def reserve(self, slots: Sequence[int], ends: Sequence[int]) -> None:
        self.encode(slots)
        super().reserve(slots, ends)

    def _source(self, slot: int) -> int:
        return self.rows.source(slot)

    def _source_tokens(self, slot: int) -> tuple[int, ...]:
        return tuple(self.rows.read(slot, 0, self._source(slot)))
