"""A request's sample as the engine keeps it: one token row and its frontiers."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch

from cascade_engine.cache import NO_TOKENS, extend_keys, prefix_key
from cascade_engine.engine.results import Piece, RunStats, StepOutput, piece_of
from cascade_engine.levels import (
    MAX_NODES,
    ROOT,
    DraftedTree,
    SegmentDrafted,
    TokenLogprobs,
    TokenRows,
    TokenTree,
    TokenTrie,
    Verdict,
)
from cascade_engine.ops import Sampler
from cascade_engine.params import SamplingParams
from cascade_engine.policy import RowState
from cascade_engine.sampling import AllowedMasks
from cascade_engine.stops import StopChecker

NO_SLOT = -1


@dataclass(eq=False)
class Row:
    """Bookkeeping of one row; its tokens are in TokenRows, its caches in the levels.

    Invariants: frontier[0] <= frontier[1] <= ... <= length <= limit, and each level's cached length
    is at most length - 1 between actions.
    """

    request_id: str
    index: int
    params: SamplingParams
    seed: int
    prompt: tuple[int, ...]
    tokens: Sequence[int]
    """What is written into the row's slot when it gets one: the prompt, and after a preemption or
    a fork what was emitted too."""
    limit: int
    """Longest the row may get: prompt + max_tokens, within the target's context."""
    sampler: Sampler
    stops: StopChecker
    stats: RunStats
    frontier: list[int]
    length: int
    later_indices: Iterator[int]
    """Of the samples that forks add; all samples of a request have one iterator."""
    source: int = 0
    """Leading tokens of the prompt that an encoder reads; what follows is the decoder's start."""
    allowed: AllowedMasks | None = None
    prediction: torch.Tensor | None = None
    slot: int = NO_SLOT
    exhausted: bool = False
    widened: bool = False
    ended: bool = False
    """A drafting level has written or kept a token that ends the request: the target is next."""
    counted: int = 0
    """Final tokens that the statistical level has counted; 0: none, it was not asked for trees."""
    tree: TokenTrie | None = None
    """What was drafted behind the final tokens, the row's own drafts and branches beside them;
    None while nobody asked for branches."""
    record: Any = None
    """What a learning policy keeps of the row."""
    started: float = 0.0
    probs: Sequence[float] = ()
    """`TokenRows.probs` of its slot."""
    sources: list[int] = field(default_factory=list)
    """For each token behind the prompt, the level that appended it."""
    retired: set[int] = field(default_factory=set)
    """Drafting levels that failed on this row and are not asked again."""
    keys: list[bytes] = field(default_factory=list)
    """Prefix keys of the whole pages of its leading final tokens, as far as they were needed."""
    reviews: int = 0
    """By any level, at least, if they go by the rejection rule: each has noise of its own."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens that the last target review left, where they are asked for."""

    @functools.cached_property
    def prompt_token_ids(self) -> list[int]:
        """What the request gave as its prompt; every output holds it, and may change it."""
        return [*(self.prompt[: self.source] if self.source else self.prompt)]

    def extend_keys(self, tokens: Sequence[int]) -> None:
        """Adds the keys of the next whole pages, whose tokens are `tokens`; a rest is left out."""
        extend_keys(self.keys, tokens, self.root_key)

    @functools.cached_property
    def root_key(self) -> bytes:
        """Key of its empty prefix. What an encoder leaves for a token depends on the whole source,
        so every page depends on it."""
        return prefix_key(NO_TOKENS, self.prompt[: self.source]) if self.source else NO_TOKENS

    def state(self, contexts: list[int]) -> RowState:
        """What the policy sees; `contexts` are the neural levels' context lengths."""
        length = seen = self.length
        room = 0 if self.ended else self.limit - 1 - length
        if self.sampler.rejects:
            # A level that falls asleep over drafts would leave them to one that knows less of them.
            seen = self.final
            awake = [context for context in contexts if context >= seen]
            room = min(room, min(awake) - length)
        dormant: tuple[bool, ...] = ()
        if self.retired or seen > min(contexts):
            dormant = tuple(
                [seen > context or i in self.retired for i, context in enumerate(contexts)]
            )
        return RowState(
            tuple(self.frontier),
            length,
            room,
            self.exhausted,
            self.widened,
            dormant,
            self.record,
            self.probs,
        )

    def drafts(self, tokens: TokenRows) -> tuple[TokenTrie, list[int]]:
        """The row's tree, brought up to date, and the nodes of the row's own drafts in it."""
        if self.tree is None:
            self.tree = TokenTrie()
        chain = self.tree.add_chain(
            ROOT,
            tokens.read(self.slot, self.final, self.length),
            tokens.read_probs(self.slot, self.final, self.length),
            self.sources[self.final - len(self.prompt) :],
        )
        return self.tree, chain

    def review_tree(
        self, level: int, nodes: int, context: int, tokens: TokenRows
    ) -> TokenTree | None:
        """What a level with this context reviews of the row's tree, up to `nodes` nodes; None where
        the row's own drafts are all there is room for."""
        trie, chain = self.drafts(tokens)
        reviewed = self.frontier[level] - self.final
        drafted = len(chain) - reviewed
        if drafted >= min(nodes, MAX_NODES):
            return None
        root = chain[reviewed - 1] if reviewed else ROOT
        # A review writes one token more, and behind it come those of the better levels.
        reach = min(self.limit - 1 - level, context)
        depth = reach - self.frontier[level]
        tree = trie.best(root, chain[reviewed:], nodes, depth)
        return tree if len(tree) > drafted else None

    def add_siblings(self, level: int, verdict: Verdict, tokens: TokenRows) -> None:
        """After a drafting level's review: its runners-up become branches; what it rejected stays
        as one, worth what the level's own token leaves."""
        trie, chain = self.drafts(tokens)
        trie.overrule(chain[-1])
        before = len(trie)
        above = [ROOT, *chain][-1 - len(verdict.siblings) : -1]
        for parent, siblings in zip(above, verdict.siblings, strict=True):
            for token, prob in siblings:
                trie.add(parent, token, prob, level)
        self.stats.levels[level].drafted += len(trie) - before

    def begin(self) -> None:
        """The row has a slot; its time runs from the first time that it has."""
        self.started = self.started or time.perf_counter()

    def roll_back(self) -> None:
        """Drops what is not final, and the slot's statistics."""
        self.counted = 0
        self.length = self.final
        self.frontier = [self.final] * len(self.frontier)
        del self.sources[self.final - len(self.prompt) :]
        self.exhausted = self.widened = self.ended = False
        self.tree = None

    def retire(self, level: int) -> None:
        """Goes on without a drafting level that failed, and without what it had to review."""
        self.retired.add(level)
        self.length = self.frontier[level]
        for i in range(level, len(self.frontier)):
            self.frontier[i] = self.length
        del self.sources[self.length - len(self.prompt) :]
        self.exhausted = self.widened = self.ended = False
        self.tree = None

    def append_draft(self, level: int, count: int) -> None:
        """The statistical level wrote `count` tokens behind the row."""
        self.length += count
        self.sources.extend([level] * count)
        self.exhausted = count == 0
        self.stats.levels[level].drafted += count

    def append_own(self, level: int, count: int) -> None:
        """A neural level drafted `count` tokens on its own: each is a review that found nothing."""
        self.length += count
        self.sources.extend([level] * count)
        for i in range(level, len(self.frontier)):
            self.frontier[i] = self.length
        self.exhausted = self.widened = False
        self.reviews += count
        self.stats.levels[level].drafted += count

    def append_segment(self, level: int, statistical: int, drafted: SegmentDrafted) -> None:
        """A neural level drafted, reviewing what the statistical level proposed."""
        for count in drafted.accepted:
            self.sources.extend([statistical] * count)
            self.sources.append(level)
        self.length = len(self.prompt) + len(self.sources)
        for i in range(level, len(self.frontier)):
            self.frontier[i] = self.length
        self.exhausted = self.widened = False
        if self.sampler.rejects:
            self.reviews += len(drafted.accepted)
        self.stats.levels[level].drafted += len(drafted.accepted)
        self.stats.levels[statistical].drafted += sum(drafted.proposed)

    def append_branches(self, level: int, tokens: TokenRows, root: int, tree: DraftedTree) -> None:
        """The statistical level proposed a tree behind the row's leading `root` tokens."""
        trie, chain = self.drafts(tokens)
        before = len(trie)
        parent = [ROOT, *chain][root - self.final]
        flat = (tree.tokens.tolist(), tree.parents.tolist(), tree.probs.tolist())
        trie.add_tree(parent, *flat, level)
        self.widened = True
        self.stats.levels[level].drafted += len(trie) - before

    @property
    def final(self) -> int:
        """Leading tokens that are the prompt or were emitted."""
        return len(self.prompt) + self.stats.new_tokens

    def look_for_end(self, tokens: TokenRows, begin: int) -> None:
        """A drafting level stands behind the drafts from `begin` on: if one of them ends the
        request, the target is next. Not by the rejection rule, where who reviews a token must not
        depend on it."""
        if not self.sampler.rejects:
            drafts = tokens.read(self.slot, begin, self.length)
            self.ended = self.stops.has_end(drafts, begin - len(self.prompt))

    def settle(self, level: int, verdict: Verdict, tree: TokenTree | None = None) -> None:
        """Level `level` kept some drafts behind its frontier and wrote its own token."""
        end = self.frontier[level] + verdict.num_accepted
        if tree is None:
            del self.sources[end - len(self.prompt) :]
        else:
            del self.sources[self.frontier[level] - len(self.prompt) :]
            self.sources.extend(tree.sources[node] for node in verdict.path)
        self.sources.append(level)
        self.length = end + 1
        for i in range(level, len(self.frontier)):
            self.frontier[i] = self.length
        self.exhausted = self.widened = False
        if level == 0:
            self.tree, self.ended = None, False
        self.stats.levels[level].drafted += 1

    def emit(self, token_ids: list[int]) -> StepOutput:
        """Makes the row's last tokens final, up to a stop; ends the row there or at its limit."""
        sources = self.sources[self.length - len(token_ids) - len(self.prompt) :]
        texts = self.stops.push_all(token_ids)
        logprobs: Iterable[TokenLogprobs | None] = self.logprobs or repeat(None)
        pieces = [*map(piece_of, zip(texts, token_ids, sources, logprobs, strict=False))]
        if len(texts) < len(sources):
            del sources[len(texts) :]
        for level in set(sources):
            self.stats.levels[level].accepted += sources.count(level)
        finish = None if self.stops.reason is None else "stop"
        if finish is None and self.length >= self.limit:
            last = self.stops.finish()
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text + last.text)
            finish = "stop" if last.stopped else "length"
        self.stats.new_tokens += len(pieces)
        self.stats.seconds = time.perf_counter() - self.started
        self.stats.target_calls += 1
        return self.output(pieces, finish)

    def output(self, pieces: list[Piece], finish_reason: str | None = None) -> StepOutput:
        """`pieces` as an output of this row; none at all is where joining outputs begins."""
        stop = None if self.stops.reason is None else self.stops.reason.value
        return StepOutput(
            self.request_id,
            self.index,
            self.prompt_token_ids,
            self.seed,
            self.stats,
            pieces,
            finish_reason,
            stop,
        )
