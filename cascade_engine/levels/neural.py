"""A model with its cache, as a level of the cascade."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cascade_engine.cache import KVStorage, PageTable, pages_for
from cascade_engine.levels.rows import ReviewItem, TokenLogprobs, TokenRows, Verdict
from cascade_engine.models import llama
from cascade_engine.ops import CpuBackend

PREFILL_TOKENS = 256
"""Tokens of one prefill pass; any split gives the same bits."""


class NeuralLevel:
    """A model that reviews, and thereby drafts: its own token ends every review.

    `context` is the number of tokens it can attend to; `tokens` the number its cache holds for all
    rows together. `left_padded`: passes over several rows are dense, each row padded on its left to
    the longest (the papers' form of batches); else ragged. The tokens are the same.
    """

    def __init__(
        self,
        name: str,
        weights: llama.LlamaWeights,
        backend: CpuBackend,
        rows: TokenRows,
        context: int,
        tokens: int,
        vocab_size: int,
        left_padded: bool = False,
    ) -> None:
        config = weights.config
        self.name = name
        self.weights = weights
        self.context = context
        self.vocab_size = vocab_size
        self._backend = backend
        self._left_padded = left_padded
        self.rows = rows
        num_rows, capacity = rows.tokens.shape
        pages = pages_for(tokens)
        self.pages = PageTable(pages, num_rows, min(context, capacity))
        self.storage = KVStorage(
            config.num_layers, pages, config.num_kv_heads, config.head_dim, weights.activation_dtype
        )
        recorder = backend.recorder()
        layers = recorder.cache_layers(self.storage.data, config.num_kv_heads, config.head_dim)
        self._logits = llama.forward(recorder, weights, layers)
        self._recorder = recorder
        self._program = recorder.program
        self._program.bind_rows(rows.tokens.data_ptr(), capacity, num_rows)
        table = self.pages.block_table
        self._program.bind_block_tables(table.data_ptr(), table.shape[1], pages)

    def prefill(self, slot: int, tokens: int) -> None:
        """Caches the row's leading `tokens` tokens, as far as they are not yet."""
        while self.pages.length[slot] < tokens:
            start = self.pages.length[slot]
            self._feed([slot], [min(tokens, start + PREFILL_TOKENS)], [0])

    def review(self, items: Sequence[ReviewItem], lenience: float) -> list[Verdict]:
        """One forward pass over what this level has not seen of each row, then the acceptance rule.

        Writes the level's own token behind the accepted ones. The caller truncates the cache to
        the row's new length. Rows that lag far behind are brought up first.
        """
        for item in items:
            if item.length - self.pages.length[item.slot] > PREFILL_TOKENS:
                self.prefill(item.slot, item.frontier - 1)
        slots = [item.slot for item in items]
        lengths = [item.length for item in items]
        self._feed(slots, lengths, [item.length - item.frontier + 1 for item in items])
        allowed = [0 if item.allowed is None else item.allowed.data_ptr() for item in items]
        verdicts = self._backend.accept(
            **self._logits_and_tokens(),
            logit_rows=self._program.rows(self._logits),
            probs=self.rows.draft_probs.data_ptr(),
            rows=slots,
            frontiers=[item.frontier for item in items],
            lengths=lengths,
            samplers=[item.sampler for item in items],
            lenience=lenience,
            allowed=allowed if any(allowed) else [],
        )
        logprobs = {}
        if any(item.logprobs is not None for item in items):
            logprobs = self._logprobs(items, verdicts, allowed)
        return [
            Verdict(num_accepted, token, logprobs.get(i, ()))
            for i, (num_accepted, token) in enumerate(verdicts)
        ]

    def fork(self, source: int, target: int, tokens: int) -> None:
        """The empty row `target` shares what is cached of the first `tokens` tokens of `source`."""
        self.pages.fork(source, target)
        self.pages.truncate(target, tokens)

    def truncate(self, slot: int, tokens: int) -> None:
        """Rollback: at most `tokens` leading tokens of the row stay cached."""
        self.pages.truncate(slot, tokens)

    def score(self, slot: int, tokens: int, wanted: int) -> torch.Tensor:
        """Feeds the row up to `tokens` tokens; the last `wanted` logits, float32
        `[wanted, rows of the head]`. For tools and tests."""
        self._feed([slot], [tokens], [wanted])
        return self._recorder.read(self._logits)

    def _logits_and_tokens(self) -> dict[str, int]:
        tokens = self.rows.tokens
        return {
            "logits": self._program.data(self._logits),
            "logits_stride": self._program.cols(self._logits),
            "vocab": self.vocab_size,
            "tokens": tokens.data_ptr(),
            "token_stride": tokens.shape[1],
        }

    def _logprobs(
        self,
        items: Sequence[ReviewItem],
        verdicts: Sequence[tuple[int, int]],
        allowed: Sequence[int],
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        """By item, for the items that ask: log-probabilities of the tokens a review left."""
        found: dict[int, tuple[TokenLogprobs, ...]] = {}
        first_logit_row = 0
        for i, (item, (num_accepted, _)) in enumerate(zip(items, verdicts, strict=True)):
            if item.logprobs is not None:
                (row,) = self._backend.logprobs(
                    **self._logits_and_tokens(),
                    rows=[item.slot],
                    first_logit_rows=[first_logit_row],
                    starts=[item.frontier],
                    counts=[num_accepted + 1],
                    samplers=[item.sampler],
                    top=[item.logprobs.top],
                    processed=[item.logprobs.processed],
                    allowed=[allowed[i]] if allowed[i] else [],
                )
                found[i] = tuple(TokenLogprobs(*entry) for entry in row)
            first_logit_row += item.length - item.frontier + 1
        return found

    def _feed(self, slots: list[int], ends: list[int], logits: list[int]) -> None:
        pages = self.pages
        for slot, end in zip(slots, ends, strict=True):
            pages.reserve(slot, end, self.storage.copy_page)
        starts = [pages.length[slot] for slot in slots]
        counts = [end - start for start, end in zip(starts, ends, strict=True)]
        self._program.run(slots, starts, counts, logits, self._left_padded)
        for slot, end in zip(slots, ends, strict=True):
            pages.length[slot] = end
