"""The statistical level's drafts and a neural level's review of them: one action of the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cascade_engine.levels.judged import judge, read_logprobs
from cascade_engine.levels.neural import NeuralLevel
from cascade_engine.levels.rows import (
    LogprobRequest,
    Rejection,
    ReviewItem,
    TokenLogprobs,
    TokenRows,
    Verdict,
)
from cascade_engine.levels.statistical import LEAST_PROBABILITY, Proposal, StatisticalLevel
from cascade_engine.levels.tree import MAX_NODES, TokenTree, shares_of, unmoved
from cascade_engine.ops import (
    Ask,
    CudaBackend,
    CudaSpeculation,
    DeviceDistributions,
    Reviewed,
    RowRejection,
    Sampler,
)


@dataclass(frozen=True, slots=True)
class Speculated:
    """What is asked for one row: as `proposal` says, of trees at most `depth` deep. The level has
    reviewed the tokens before `frontier` (None: all); the others are reviewed with the drafts."""

    proposal: Proposal
    depth: int
    sampler: Sampler
    frontier: int | None = None
    rejection: Rejection | None = None
    logprobs: LogprobRequest | None = None


class Speculation:
    """Drafts are written where the reviewing level reads them, accepted tokens where the next
    drafts are looked for; the host hears of both once, after the review."""

    def __init__(
        self, level: NeuralLevel, statistical: StatisticalLevel, action: CudaSpeculation
    ) -> None:
        self._level = level
        self._statistical = statistical
        self._action = action
        self._rows: TokenRows = level.rows

    @classmethod
    def of(cls, level: NeuralLevel, statistical: StatisticalLevel) -> Speculation | None:
        """None where the backend has no such action, or drafts are a drafter's of one's own."""
        if type(statistical) is not StatisticalLevel:
            return None
        sources = statistical.sources
        action = level.speculation(
            table=sources.table,
            doubts=sources.drafter.doubts,
            least=LEAST_PROBABILITY,
        )
        return None if action is None else cls(level, statistical, action)

    def fits(self, asked: Sequence[Speculated]) -> bool:
        """Whether drafts of this size can be made and reviewed here, with the pages that are
        free."""
        pages, missing = self._level.pages, 0
        for each in asked:
            slot, length, count = _sizes(each.proposal)
            reviewed = length - _frontier(each) + count
            if not (count <= reviewed <= MAX_NODES and length + count <= self._level.context):
                return False
            missing += pages.missing(slot, length + count)
        return missing <= pages.available_pages

    def review(
        self,
        asked: Sequence[Speculated],
        trees: bool,
        source: int,
        lenience: float = 1.0,
        probs: bool = False,
        heard: Callable[[Sequence[ReviewItem]], None] | None = None,
    ) -> list[tuple[ReviewItem, Verdict]]:
        """What was drafted (by level `source`) and what this level decided. The rows have the
        accepted tokens and its own one, with `probs` their probabilities by it; the caller
        truncates its cache as after any review. `heard` is told before, while the rows have their
        drafts. Raises ValueError, with the rows as they were, when one's logits allow no token."""
        pages = self._level.pages
        if trees:
            drafter = self._statistical.sources.drafter
            self._action.learn(drafter.learned_changes, drafter.learned_text)
        sizes = [_sizes(each.proposal) for each in asked]
        for each, (slot, length, count) in zip(asked, sizes, strict=True):
            self._level.catch_up(slot, length + count, _frontier(each) - 1)
        self._level.reserve([s for s, _, _ in sizes], [n + k for _, n, k in sizes])
        asks = [self._ask(each, trees) for each in asked]
        try:
            reviewed = self._action.run(asks, trees, lenience, probs)
        except ValueError:
            for ask in asks:
                pages.truncate(ask.row, ask.cached)
            raise
        items = [
            _item(ask, made, source)._replace(logprobs=each.logprobs)
            for ask, made, each in zip(asks, reviewed, asked, strict=True)
        ]
        if heard is not None:
            for ask, made, item in zip(asks, reviewed, items, strict=True):
                if item.tree is None:
                    self._rows.append(ask.row, ask.length, made.tokens, [1.0] * len(made.tokens))
            heard(items)
        return [
            (item, self._settled(item, each)) for item, each in zip(items, reviewed, strict=True)
        ]

    def _ask(self, asked: Speculated, trees: bool) -> Ask:
        slot, length, count = _sizes(asked.proposal)
        row = (slot, length, count, asked.depth, asked.sampler, self._level.pages.length[slot])
        rejection = self._rejection(asked, min(count, asked.depth) if trees else count)
        prediction, bring = asked.proposal.prediction, asked.logprobs is not None
        return Ask(*row, _frontier(asked), prediction, rejection, bring)

    def _rejection(self, asked: Speculated, drafts: int) -> RowRejection | None:
        """Where at most `drafts` of what is drafted are accepted."""
        if asked.rejection is None:
            return None
        number, keeps, own = asked.rejection
        places = own + drafts + 1 if keeps else 0
        distributions = self._rows.distributions
        assert isinstance(distributions, DeviceDistributions)
        slot, frontier = asked.proposal.slot, _frontier(asked)
        return RowRejection(distributions, slot, frontier, number, own, places)

    def _settled(self, item: ReviewItem, found: Reviewed) -> Verdict:
        n = len(found.gained) - 1
        self._rows.append(item.slot, item.frontier, found.gained, found.probs or [1.0] * (n + 1))
        self._level.pages.length[item.slot] = item.frontier + n
        path, still = ([], n) if item.tree is None else (found.path, unmoved(found.path))
        return Verdict(n, found.gained[-1], self._logprobs(item, found), path, still)

    def _logprobs(self, item: ReviewItem, found: Reviewed) -> tuple[TokenLogprobs, ...]:
        """Of the tokens that the row has got, where they are asked for."""
        if found.logits is None:
            return ()
        backend = self._level.backend
        assert isinstance(backend, CudaBackend)
        verdict = (len(found.gained) - 1, found.gained[-1], found.path)
        logits = {
            "logits": found.logits.data_ptr(),
            "logits_stride": found.logits.stride(0),
            "vocab": self._level.vocab_size,
            "tokens": self._rows.address,
            "token_stride": self._rows.capacity,
        }
        return read_logprobs(backend.host, logits, judge([item], [verdict], [0]))[0]


def _item(ask: Ask, found: Reviewed, source: int) -> ReviewItem:
    """What was reviewed; nodes of trees were drafted by level `source`."""
    if not found.parents:
        end = ask.length + len(found.tokens)
        return ReviewItem(ask.row, ask.frontier, end, ask.sampler)
    shares = shares_of(found.parents, found.path_probs)
    tree = TokenTree(found.tokens, found.parents, shares, [source] * len(shares))
    return ReviewItem(ask.row, ask.frontier, ask.length, ask.sampler, tree=tree)


def _frontier(asked: Speculated) -> int:
    return asked.proposal.length if asked.frontier is None else asked.frontier


def _sizes(proposal: Proposal) -> tuple[int, int, int]:
    return proposal.slot, proposal.length, proposal.tokens
