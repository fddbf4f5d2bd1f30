"""What a policy sees and what it may answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class RowState(NamedTuple):
    """One row, as the policy sees it.

    Levels are 0 (target), 1..n-1 (neural drafts, large to small) and n (statistical).
    """

    frontier: tuple[int, ...]
    """Per neural level, 0..n-1: leading tokens reviewed by that level or a better one.
    Never decreasing with the level; at most `length`."""
    length: int
    """Tokens in the row; also the statistical level's frontier."""
    room: int
    """Tokens that may still be appended before the row must be reviewed by the target: a target
    review appends one token of its own, so drafts stop one short of the row's limit."""
    exhausted: bool = False
    """The last draft of the statistical level found nothing; cleared by any review."""
    widened: bool = False
    """The statistical level has added to the row's tree since the last review."""
    dormant: tuple[bool, ...] = ()
    """Per neural level: cannot follow this row any more (its context is too short). Empty: none."""
    record: Any = None
    """What a learning policy keeps of the row; None until it has heard of it."""
    probs: Sequence[float] = ()
    """For each token of the row that is drafted: the probability that the level which wrote it gave
    it (1 for tokens from tables), or a level that kept it with lenience or by the rejection rule.
    Valid until the row changes. Empty: nobody knows."""

    def confidence(self, level: int, drafter: int) -> float:
        """How likely, by the drafting models, `level` keeps what `drafter` has vouched for behind
        its frontier: the product of the tokens' `probs`. What a table wrote and a model kept counts
        as certain; what no model has seen does not count."""
        end = self.frontier[min(drafter, len(self.frontier) - 1)]
        return math.prod(self.probs[self.frontier[level] : end])

    def is_dormant(self, level: int) -> bool:
        return level < len(self.dormant) and self.dormant[level]


class Segment(NamedTuple):
    """A vertical cascade that is settled before its drafts are known: the statistical level drafts
    and one neural level reviews, in turn."""

    level: int
    """It reviews; nothing stands behind its frontier yet."""
    tokens: int
    """A review after which it vouches for so many tokens more is the last one."""
    most: int
    """So many may be appended: the last drafts leave room for the level's own token, or there are
    none."""
    width: int
    """Asked of the statistical level at a time."""
    least: int
    """While it has found fewer for a review, but some, it is asked again."""
    min_confidence: float = 0.0
    """A review behind which the product of the `RowState.probs` of the segment's tokens is below is
    the last one as well."""


class Draft(NamedTuple):
    """Append up to `tokens` tokens proposed by level `level`.

    A neural level drafts on its own: `Draft(level, k)` leaves what k times `Review(level)` leave,
    at the cost of one step of the policy. It may leave less, at least what one leaves: tokens
    behind its frontier are judged first, and where little memory is free it draws fewer; the policy
    is then asked again. Not for the target.

    With `nodes` > 0, of the statistical level alone, the row stays as it is, and up to so many
    nodes of a tree, `tokens` deep, are put beside what was drafted for it.

    With `min_confidence` > 0 (at most 1) a neural level that drafts on its own stops behind the
    token with which the product of the probabilities it gave these tokens falls below that. Where
    it drafts in reviews, it is the policy that sees it in `RowState.probs`.

    With `segment`, of the statistical level, this draft begins what the policy would ask for one by
    one, whatever is found, as long as no level falls asleep: an engine may do it all in one go."""

    level: int
    tokens: int
    nodes: int = 0
    min_confidence: float = 0.0
    segment: Segment | None = None


class Review(NamedTuple):
    """Feed level `level` what it has not seen, keep what it agrees with, append its own token.

    With `nodes` > 0 it judges the row's drafts and the most probable branches beside them, so many
    nodes together. With `siblings` > 0 a drafting level leaves, beside each token it wrote, so many
    runners-up as branches for better levels, and what it rejected."""

    level: int
    nodes: int = 0
    siblings: int = 0


Action = Draft | Review


class Policy(Protocol):
    """A pure function over row states.

    Requests may ask for the rejection rule, which keeps the target's distribution as long as tokens
    are drawn from the distribution that their reviewer takes them to be drawn from. So which level
    reviews a drafted token must be settled before it is drafted: it may depend on the row's
    positions, on the reviewing level's own tokens so far and on how segments ended that are
    reviewed already, not on how much of the present one a lower level kept.
    """

    @property
    def lenience(self) -> float:
        """>= 1; how far drafting levels may disagree with a proposal and still keep it. The target
        always reviews with 1."""

    def check(self, drafting_levels: int) -> None:
        """Raises RequestError if the policy cannot run with this many drafting levels
        (neural drafts plus the statistical level)."""

    def next_action(self, row: RowState) -> Action:
        """The next action for a row; `Review(0)` ends the row's part in an engine step."""


class RowSeen(Protocol):
    """A row, as far as policies and traces that are common to engine and simulator look at it."""

    record: Any
    """Belongs to the policy that learns."""

    @property
    def frontier(self) -> list[int]: ...

    @property
    def length(self) -> int: ...


class TreeSeen(Protocol):
    """A reviewed tree, as levels/tree.py has it. Paths begin at its root."""

    def __len__(self) -> int: ...

    def ranks(self, path: Sequence[int]) -> list[int]: ...

    def likeliest(self, path: Sequence[int], begin: int) -> list[bool]: ...

    def needed(
        self, path: Sequence[int], sizes: Sequence[int], begin: int
    ) -> list[tuple[int, int]]: ...


class ReviewSeen(Protocol):
    """What was reviewed of a row."""

    @property
    def frontier(self) -> int:
        """The reviewing level's, before the review."""

    @property
    def length(self) -> int:
        """The row's, before the review."""

    @property
    def tree(self) -> TreeSeen | None:
        """None: the row's own drafts; else a tree (`TreeSeen`)."""


class VerdictSeen(Protocol):
    @property
    def num_accepted(self) -> int:
        """Drafted tokens that were kept, without the level's own."""

    @property
    def path(self) -> Sequence[int]:
        """Of a tree: the nodes kept."""


class OutputSeen(Protocol):
    @property
    def pieces(self) -> Sequence[Any]:
        """One for each token."""

    @property
    def finish_reason(self) -> str | None:
        """None while the row goes on."""


class SegmentSeen(Protocol):
    """What a row got in one call for a segment."""

    @property
    def proposed(self) -> Sequence[int]:
        """Drafts that each review saw."""

    @property
    def accepted(self) -> Sequence[int]:
        """Those that it kept, without the level's own token behind them."""


class PassSeen(Protocol):
    @property
    def rows(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def seconds(self) -> float:
        """0: proposals that a device makes as a part of their review."""


class SegmentsSeen(Protocol):
    @property
    def rows(self) -> Sequence[SegmentSeen]: ...

    @property
    def proposals(self) -> Sequence[PassSeen]:
        """What the statistics proposed, before each review."""

    @property
    def reviews(self) -> Sequence[PassSeen]: ...


class Listener(Protocol):
    """Hears what an engine does, right after it; changes nothing of what it is given.

    `seconds` are those of the pass.
    """

    @property
    def listening(self) -> bool:
        """Whether it wants to hear of passes now; of steps it hears in any case."""

    def drafted(self, level: int, drafts: Sequence[tuple[RowSeen, Draft]], seconds: float) -> None:
        """The statistical level was asked for these drafts in one go: chains, or trees. Or a neural
        level made them on its own, `tokens` each, in as many passes as the longest has. Chains
        stand in the rows. Drafts that a device makes as a part of their review are heard of with
        that."""

    def reviewed(
        self,
        level: int,
        rows: Sequence[RowSeen],
        items: Sequence[ReviewSeen],
        verdicts: Sequence[VerdictSeen],
        fed: int,
        seconds: float,
    ) -> None:
        """A level reviewed rows in one pass over `fed` tokens; the rows are as that left them."""

    def drafted_segments(self, level: int, rows: Sequence[RowSeen], drafted: SegmentsSeen) -> None:
        """A neural level reviewed what the statistics proposed, over and over, in one call; the
        rows are as that left them."""

    def stepped(
        self, outputs: Sequence[OutputSeen], seconds: float, prefill_seconds: float
    ) -> None:
        """An engine step is over: what it emitted, one output for each row; the time of all of it,
        and of passes over prompts alone in it."""


class LevelSet(NamedTuple):
    """The levels that a policy learns about."""

    neural: int
    """Neural levels, the target included; the statistical level's number."""
    weight_bytes: tuple[int, ...]
    """Of each of them: passes over few tokens take about that much longer."""
    key: str
    """Names models, precision and machine: what was learnt is kept under it."""
    clock: Callable[[], float] = time.perf_counter
    """In seconds; tells a policy how long it thought."""


class Learner(Policy, Listener, Protocol):
    """A policy at work in one engine, which learns while it runs. `next_action` changes nothing:
    what was learnt takes effect between a target review of a row and its next draft."""


@runtime_checkable
class Learning(Protocol):
    """A policy that learns: each engine starts it anew."""

    def start(self, levels: LevelSet) -> Learner: ...
