"""What happens to rows, event by event, for whoever wants to know."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_engine.engine.results import StepOutput
from cascade_engine.engine.row import Row
from cascade_engine.levels import DraftedTree, ReviewItem, Verdict
from cascade_engine.policy import Listener


class Watcher:
    """Hears everything and does nothing: nobody, and the base of those who do something.

    Changes nothing of what it is given, and raises nothing. Times are `time.perf_counter` values
    and seconds. (Policies learn from `policy.Listener`, which the simulator can tell as well.)
    """

    def enqueued(self, rows: Sequence[Row]) -> None:
        """Rows of new requests or forks wait; or they were there when the watching began."""

    def admitted(self, row: Row, cached: int) -> None:
        """A row has a slot; the statistics count `cached` of its prompt as found in the cache."""

    def prefilled(self, row: Row, start: int, end: int, begin: float, seconds: float) -> None:
        """The target read the row's tokens `start`..`end` - 1 in passes of their own."""

    def drafted(self, row: Row, count: int) -> None:
        """A level wrote `count` tokens behind the row; `passed` follows."""

    def branched(self, row: Row, root: int, tree: DraftedTree) -> None:
        """The statistical level proposed a tree behind the row's leading `root` tokens; `passed`
        follows."""

    def reviewing(self, rows: Sequence[Row], items: Sequence[ReviewItem]) -> None:
        """A level is about to review rows, and to write over what it rejects. If its pass fails,
        `passed` does not follow."""

    def settled(self, row: Row, item: ReviewItem, verdict: Verdict) -> None:
        """What that review decided of a row, which is still as it was, but for its tokens."""

    def passed(self, kind: str, level: int, begin: float, seconds: float) -> None:
        """A pass ("draft" or "review") of a level is over, with the rows told before. Where a
        neural level drafted, it was a pass for each token of the longest draft."""

    def retired(self, row: Row, level: int) -> None:
        """A drafting level failed on the row and is not asked again."""

    def preempted(self, rows: Sequence[Row]) -> None:
        """Rows lost their slots and what was not final."""

    def emitted(self, row: Row, out: StepOutput) -> None:
        """Tokens became final; with a finish reason, the row is done."""

    def dropped(self, row: Row) -> None:
        """A row is gone before its end."""

    def stepped(self, begin: float, seconds: float) -> None:
        """An engine step is over."""


class Audience:
    """Everybody who hears of what an engine does: one watcher, and the policies' listeners."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        """A plain `Watcher` is nobody."""
        self.listeners: list[Listener] = []

    @property
    def watched(self) -> bool:
        """Somebody wants to see drafts before they are reviewed."""
        return type(self.watcher) is not Watcher

    def listening(self) -> list[Listener]:
        """Who wants to hear of passes now."""
        return [each for each in self.listeners if each.listening]
