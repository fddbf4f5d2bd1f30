"""A model with its cache, as a level of the cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.cache import PAGE_TOKENS, KVStorage, LeadingPages, PageTable, pages_for
from cascade_engine.errors import CapacityError
from cascade_engine.levels.judged import verdicts_of
from cascade_engine.levels.rows import DraftItem, Rejection, ReviewItem, TokenRows, Verdict
from cascade_engine.levels.tree import MAX_NODES, unmoved
from cascade_engine.models import llama
from cascade_engine.models.family import ModelWeights
from cascade_engine.models.llama import LlamaWeights
from cascade_engine.ops import CpuBackend, CudaBackend, CudaSpeculation, Sampler

PREFILL_TOKENS = 84
"""Tokens of one prefill pass: whole tiles of the CPU's matrix product (14 rows, 6 on AVX2) that go
through the weights at once; with more, a pass would only hold more activations. Any split gives the
same bits."""

NO_NODES: tuple[list[int], list[int]] = ([], [])
NO_TREE: tuple[list[int], list[int], list[float]] = ([], [], [])
NO_REJECTION = Rejection(0, False, 0)


class NeuralLevel:
    """A model that reviews, and thereby drafts: its own token ends every review.

    `context` is the number of tokens it can attend to; `tokens` the number its cache holds for all
    rows together. `left_padded`: passes over several rows are dense, each row padded on its left to
    the longest (the papers' form of batches); else ragged. The tokens are the same.
    `owner`: a level of which this one has the first layers, and with them its cache.
    """

    def __init__(
        self,
        name: str,
        weights: ModelWeights,
        backend: CpuBackend | CudaBackend,
        rows: TokenRows,
        context: int,
        tokens: int,
        vocab_size: int,
        left_padded: bool = False,
        owner: NeuralLevel | None = None,
    ) -> None:
        config = weights.config
        self.name = name
        self.weights = weights
        self.context = context
        self.vocab_size = vocab_size
        self.backend = backend
        self.left_padded = left_padded
        self.rows = rows
        self.drafts = True
        """Whether `draft` is there; where not, a review of nothing gives a token at a time."""
        self.cascades = True
        """Whether it can draft with a level below it by itself (see segments.py)."""
        num_rows, capacity = rows.tokens.shape
        pages = pages_for(tokens)
        self.row_tokens = min(context, capacity)
        # A tree's nodes take a slot each, and two of them may have one position.
        self.pages: PageTable | LeadingPages
        if owner is None:
            self.pages = PageTable(pages, num_rows, self.row_tokens + MAX_NODES)
            self.storage = _storage(weights, pages, backend)
        else:
            self.pages, self.storage = LeadingPages(owner.table), owner.storage
        recorder = backend.recorder()
        cache = self.storage.data[: config.num_layers]
        layers = recorder.cache_layers(cache, config.num_kv_heads, config.head_dim)
        self._logits = self._forward(recorder, layers)
        self._recorder = recorder
        self._program = recorder.program
        self._program.bind_rows(rows.tokens.data_ptr(), capacity, num_rows)
        table = self.pages.block_table
        self._program.bind_block_tables(table.data_ptr(), table.shape[1], pages)

    @property
    def table(self) -> PageTable:
        """Its pages, where they are its own."""
        assert isinstance(self.pages, PageTable)
        return self.pages

    @property
    def shares(self) -> bool:
        """Its pages are another level's."""
        return isinstance(self.pages, LeadingPages)

    def _forward(self, ops: Any, layers: Any) -> Any:
        assert isinstance(self.weights, LlamaWeights)
        return llama.forward(ops, self.weights, layers)

    def prefill(self, slot: int, tokens: int) -> None:
        """Caches the row's leading `tokens` tokens, as far as they are not yet."""
        while self.pages.length[slot] < tokens:
            start = self.pages.length[slot]
            self._feed([slot], [min(tokens, start + PREFILL_TOKENS)], [0])

    def catch_up(self, slot: int, length: int, tokens: int) -> None:
        """Caches the leading `tokens` tokens of a row of `length` if it lags far behind."""
        if length - self.pages.length[slot] > PREFILL_TOKENS:
            self.prefill(slot, tokens)

    def review(self, items: Sequence[ReviewItem], lenience: float) -> list[Verdict]:
        """One forward pass over what this level has not seen of each row, then the acceptance rule.

        Writes the accepted tokens of a tree into the row, and the level's own token behind the
        accepted ones. The caller truncates the cache to the row's new length. Rows that lag far
        behind are brought up first.
        """
        for item in items:
            self.catch_up(item.slot, item.length, item.frontier - 1)
        self._feed_items(items)
        logits = self._logits_and_tokens()
        allowed = [0 if item.allowed is None else item.allowed.data_ptr() for item in items]
        trees = [item.tree for item in items]
        decided = self.backend.accept(
            **logits,
            logit_rows=self._program.rows(self._logits),
            probs=self.rows.probs_address,
            rows=[item.slot for item in items],
            frontiers=[item.frontier for item in items],
            lengths=[item.frontier + item.drafted for item in items],
            samplers=[item.sampler for item in items],
            lenience=lenience,
            allowed=allowed if any(allowed) else [],
            trees=[NO_TREE if t is None else (t.tokens, t.parents, t.probs) for t in trees]
            if any(trees)
            else [],
            **self._rejections(items),
            runners_up=max((item.siblings for item in items), default=0),
            logprobs=[item.slot for item in items if item.logprobs is not None],
        )
        verdicts = verdicts_of(self.backend, items, decided, logits, allowed)
        for item, (num_accepted, _, path) in zip(items, decided, strict=True):
            if item.tree is not None:
                self._commit(item, path, item.frontier + num_accepted)
        return verdicts

    def draft(self, items: Sequence[DraftItem]) -> list[int]:
        """Appends up to `item.tokens` tokens to each row, at least one, those that as many reviews
        of nothing would append; returns how many. There are fewer where free pages or the level's
        context hold no more, behind logits that allow no token, and where the confidence in them
        falls below `item.min_confidence`: the token with which it does is the row's last.

        Between the tokens nothing returns to Python. Each row's cache ends before its last token.
        Raises ValueError when the first token of a row is not to be had, and leaves the rows as
        they were.
        """
        for item in items:
            self.catch_up(item.slot, item.length, item.length - 1)
        slots = [item.slot for item in items]
        self.reserve(slots, [item.length for item in items])
        counts = self._affordable(items)
        self.reserve(slots, [item.length + n - 1 for item, n in zip(items, counts, strict=True)])
        drafted = self.backend.draft(
            **self.loop_arguments([item.sampler for item in items]),
            rows=slots,
            cached=[self.pages.length[slot] for slot in slots],
            lengths=[item.length for item in items],
            counts=counts,
            samplers=[item.sampler for item in items],
            reviews=[item.reviews for item in items],
            min_confidences=[item.min_confidence for item in items],
        )
        for item, count in zip(items, drafted, strict=True):
            self.pages.length[item.slot] = item.length + count - 1
            self.pages.truncate(item.slot, item.length + count - 1)
        return drafted

    def loop_arguments(self, samplers: Sequence[Sampler]) -> dict[str, Any]:
        """What native loops take that draft by this level for rows with these samplers."""
        rejects = any(sampler.rejects for sampler in samplers)
        return {
            "program": self._program,
            "logits": self._logits,
            "vocab": self.vocab_size,
            "tokens": self.rows.address,
            "token_stride": self.rows.capacity,
            "probs": self.rows.probs_address,
            "left_padded": self.left_padded,
            "distributions": self.rows.distributions if rejects else None,
        }

    def _affordable(self, items: Sequence[DraftItem]) -> list[int]:
        """Tokens to draft for each row: what is wanted, as far as it costs no row its pages."""
        spare, counts = self.pages.available_pages, []
        for item in items:
            fed = PAGE_TOKENS * (pages_for(item.length) + spare)
            count = min(item.tokens, 1 + min(fed, self.row_tokens) - item.length)
            spare -= pages_for(item.length + count - 1) - pages_for(item.length)
            counts.append(count)
        return counts

    def speculation(self, **options: Any) -> CudaSpeculation | None:
        """Drafts by statistics and this level's reviews of them as one action of the device, where
        the backend has that; options as CudaSpeculation has them."""
        return self.backend.speculation(self._program, self._logits, self.vocab_size, **options)

    def fork(self, source: int, target: int, tokens: int) -> None:
        """The empty row `target` shares what is cached of the first `tokens` tokens of `source`."""
        self.table.fork(source, target)
        self.table.truncate(target, tokens)

    def truncate(self, slot: int, tokens: int) -> None:
        """Rollback: at most `tokens` leading tokens of the row stay cached."""
        self.pages.truncate(slot, tokens)

    def score(self, slot: int, tokens: int, wanted: int) -> torch.Tensor:
        """Feeds the row up to `tokens` tokens; the last `wanted` logits, float32
        `[wanted, rows of the head]`. For tools and tests."""
        self._feed([slot], [tokens], [wanted])
        return self._recorder.read(self._logits)

    def _rejections(self, items: Sequence[ReviewItem]) -> dict[str, Any]:
        """What `accept` needs beside for rows that go by the rejection rule, if there are any."""
        if not any(item.rejection for item in items):
            return {}
        return {
            "distributions": self.rows.distributions,
            "rejections": [item.rejection or NO_REJECTION for item in items],
        }

    def _logits_and_tokens(self) -> dict[str, int]:
        return {
            "logits": self._program.data(self._logits),
            "logits_stride": self._program.cols(self._logits),
            "vocab": self.vocab_size,
            "tokens": self.rows.address,
            "token_stride": self.rows.capacity,
        }

    def _commit(self, item: ReviewItem, path: list[int], end: int) -> None:
        """Keys and values of an accepted path go to the slots of their positions, which are this
        row's own: `_feed` reserved them."""
        if unmoved(path) < len(path):
            self._program.commit(item.slot, item.frontier, path)
        self.pages.truncate(item.slot, end)

    def _feed_items(self, items: Sequence[ReviewItem]) -> None:
        """What this level has not seen of each row, with logits from before the frontier on."""
        slots = [item.slot for item in items]
        ends = [item.frontier + item.drafted for item in items]
        logits = [item.drafted + 1 for item in items]
        trees = [NO_NODES if i.tree is None else (i.tree.tokens, i.tree.parents) for i in items]
        if not any(tokens for tokens, _ in trees):
            self._feed(slots, ends, logits)
        else:
            self._feed(slots, ends, logits, max(item.reach for item in items), trees)

    def reserve(self, slots: Sequence[int], ends: Sequence[int]) -> None:
        """Makes each row writable up to slot `ends[i]`."""
        for slot, end in zip(slots, ends, strict=True):
            self.pages.reserve(slot, end, self.storage.copy_page)

    def _feed(
        self,
        slots: list[int],
        ends: list[int],
        logits: list[int],
        reach: int = 0,
        trees: Sequence[tuple[list[int], list[int]]] = (),
    ) -> None:
        """Feeds each row up to slot `ends[i]`; `reach` is the longest row in tokens where trees
        take more slots than they have positions."""
        pages = self.pages
        reach = reach or max(ends, default=0)
        if reach > self.row_tokens:
            raise CapacityError(f"{reach} tokens do not fit a row of {self.row_tokens}")
        self.reserve(slots, ends)
        starts = [pages.length[slot] for slot in slots]
        counts = [end - start for start, end in zip(starts, ends, strict=True)]
        self._program.run(slots, starts, counts, logits, self.left_padded, trees)
        for slot, end in zip(slots, ends, strict=True):
            pages.length[slot] = end


def _storage(weights: ModelWeights, pages: int, backend: CpuBackend | CudaBackend) -> KVStorage:
    config, dtype = weights.config, weights.activation_dtype
    shape = config.num_layers, pages, config.num_kv_heads, config.head_dim
    return KVStorage(*shape, dtype, backend.device)
