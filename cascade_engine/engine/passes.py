"""Passes over rows: neural levels draft and review, and rows take over what was decided."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.engine.items import draft_item, review_item
from cascade_engine.engine.roster import Roster
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.engine.segmenting import Taken
from cascade_engine.engine.speculating import Speculating
from cascade_engine.engine.stats import EngineStats
from cascade_engine.engine.watching import Audience
from cascade_engine.errors import DecodingError
from cascade_engine.levels import (
    NeuralLevel,
    ReviewItem,
    SegmentPass,
    TokenRows,
    TokenTree,
    Verdict,
    cut,
)
from cascade_engine.policy import Draft, Review


class Passes:
    """One call of a level for many rows at a time. A pass that fails costs a draft its part in
    the row, and no request but those that plain decoding cannot decode either."""

    def __init__(
        self,
        neural: Sequence[NeuralLevel],
        tokens: TokenRows,
        roster: Roster,
        stats: EngineStats,
        audience: Audience,
    ) -> None:
        self.error: DecodingError | None = None
        """Of requests that had to be dropped; the engine raises it when the others have emitted."""
        self._neural = neural
        self._tokens = tokens
        self._roster = roster
        self._stats = stats
        self._audience = audience

    def draft(self, level: int, drafts: Sequence[tuple[Row, Draft]]) -> None:
        """A neural level drafts for rows on its own, all their tokens in one call."""
        rows = self._roster.make_room(self._neural[level], [row for row, _ in drafts])
        if not rows:
            return
        begin = time.perf_counter()
        items = [draft_item(row, action) for row, action in drafts if row.slot != NO_SLOT]
        try:
            counts = self._neural[level].draft(items)
        except ValueError:
            self._retire(level, rows)
            return
        for row, count in zip(rows, counts, strict=True):
            row.append_own(level, count)
            row.look_for_end(self._tokens, row.length - count)
            self._audience.watcher.drafted(row, count)
        seconds = time.perf_counter() - begin
        made = [(row, Draft(level, n)) for row, n in zip(rows, counts, strict=True)]
        for listener in self._audience.listening():
            listener.drafted(level, made, seconds)
        self._stats.count_pass(level, sum(counts), seconds, max(counts))
        for row, count in zip(rows, counts, strict=True):
            row.stats.levels[level].count_call(seconds * count / sum(counts), count)
        self._audience.watcher.passed("draft", level, begin, seconds)

    def draft_segments(self, rows: Sequence[Row], taken: Taken, lenience: float) -> None:
        """A neural level and the statistical one below it draft, all segments in one call."""
        level, segments, items = taken
        try:
            drafted = segments.draft(items, lenience)
        except ValueError:
            self._retire(level, rows)
            return
        statistical = len(self._neural)
        proposing = self._count_segments(statistical, drafted.proposals)
        reviewing = self._count_segments(level, drafted.reviews)
        for row, each in zip(rows, drafted.rows, strict=True):
            begin = row.length
            row.append_segment(level, statistical, each)
            row.look_for_end(self._tokens, begin)
            calls = len(each.accepted)
            row.stats.levels[level].count_call(reviewing * calls, calls)
            row.stats.levels[statistical].count_call(proposing * each.asked, each.asked)
        for listener in self._audience.listening():
            listener.drafted_segments(level, rows, drafted)

    def _count_segments(self, level: int, passes: Sequence[SegmentPass]) -> float:
        """Passes of one level in a loop; returns the seconds for each row in them."""
        rows, seconds = sum(p.rows for p in passes), sum(p.seconds for p in passes)
        self._stats.count_pass(level, rows, seconds, sum(p.passes for p in passes))
        return seconds / max(rows, 1)

    def review(
        self, level: int, lenience: float, reviews: Sequence[tuple[Row, Review]]
    ) -> list[Row]:
        """One pass of a level over rows; returns those that were not preempted for it."""
        rows = [row for row, _ in reviews if row.slot != NO_SLOT]
        rows = self._roster.make_room(self._neural[level], rows)
        if not rows:
            return rows
        reviews = [(row, action) for row, action in reviews if row.slot != NO_SLOT]
        begin = time.perf_counter()
        items = self._review_items(level, reviews)
        fed = self._fed(level, items) if self._audience.listening() else 0
        self._audience.watcher.reviewing(rows, items)
        try:
            verdicts = self._neural[level].review(items, lenience)
        except ValueError as error:
            if level == 0:
                return self._review_alone(rows, error)
            self._retire(level, rows)
            return rows
        self._settle_all(level, rows, items, verdicts, fed, begin)
        return rows

    def speculate(
        self,
        speculating: Speculating,
        level: int,
        lenience: float,
        drafts: Sequence[tuple[Row, Draft]],
    ) -> list[Row]:
        """Drafts and a level's review of them in one action; its time is that level's."""
        begin, rows = time.perf_counter(), [row for row, _ in drafts]
        cached = sum(self._neural[level].pages.length[row.slot] for row in rows)
        try:
            watcher = self._audience.watcher if self._audience.watched else None
            found = speculating.review(level, lenience, drafts, watcher)
        except ValueError as error:
            if level == 0:
                return self._review_alone(rows, error)
            self._retire(level, rows)
            return rows
        items, verdicts = [item for item, _ in found], [verdict for _, verdict in found]
        fed = sum(item.frontier + item.drafted for item in items) - cached
        drafting = [row for row, action in drafts if action.tokens]
        self._stats.count_pass(len(self._neural), len(drafting), 0.0)
        for row in drafting:
            row.stats.levels[len(self._neural)].count_call(0.0)
        self._settle_all(level, rows, items, verdicts, fed, begin)
        return rows

    def _settle_all(
        self,
        level: int,
        rows: Sequence[Row],
        items: Sequence[ReviewItem],
        verdicts: Sequence[Verdict],
        fed: int,
        begin: float,
    ) -> None:
        for row, item, verdict in zip(rows, items, verdicts, strict=True):
            self._settle(level, row, item, verdict)
        seconds = self._count_pass(level, rows, begin)
        for listener in self._audience.listening():
            listener.reviewed(level, rows, items, verdicts, fed, seconds)

    def _count_pass(self, level: int, rows: Sequence[Row], begin: float) -> float:
        """A pass that rows are settled by; returns the seconds it took."""
        seconds = time.perf_counter() - begin
        self._stats.count_pass(level, len(rows), seconds)
        for row in rows:
            row.stats.levels[level].count_call(seconds / len(rows))
        self._audience.watcher.passed("review", level, begin, seconds)
        return seconds

    def _fed(self, level: int, items: Sequence[ReviewItem]) -> int:
        """Tokens that a level has to read for a review."""
        cached = self._neural[level].pages.length
        return sum(item.frontier + item.drafted - cached[item.slot] for item in items)

    def _settle(self, level: int, row: Row, item: ReviewItem, verdict: Verdict) -> None:
        """Takes over what a review decided for a row."""
        if item.unanswered:
            verdict = cut(item, verdict, self._tokens)
        self._audience.watcher.settled(row, item, verdict)
        if level == 0:
            self._count_review(row, item, verdict)
        row.settle(level, verdict, item.tree)
        if level:
            row.look_for_end(self._tokens, item.frontier)
        row.logprobs = verdict.logprobs
        if item.siblings:
            row.add_siblings(level, verdict, self._tokens)
        for i, each in enumerate(self._neural):
            known = row.length - 1 if i == level else item.frontier + verdict.num_unmoved
            each.truncate(row.slot, min(known, row.length - 1))

    def _review_alone(self, rows: Sequence[Row], error: Exception) -> list[Row]:
        """After a pass of the target that failed: the rows one by one and without their drafts, so
        that a request fails only where plain decoding does, and no other with it."""
        failed: list[Row] = []
        for row in rows:
            row.roll_back()
            for each in self._neural:
                each.truncate(row.slot, row.length - 1)
            item = self._review_item(row, 0, None, 0)
            self._audience.watcher.reviewing([row], [item])
            begin = time.perf_counter()
            try:
                (verdict,) = self._neural[0].review([item], 1.0)
            except ValueError as own:
                failed.append(row)
                error = own
            else:
                self._settle(0, row, item, verdict)
                self._count_pass(0, [row], begin)
        if failed:
            self.error = self._roster.fail(failed, f"{self._neural[0].name}: {error}")
        return [row for row in rows if row.slot != NO_SLOT]

    def _count_review(self, row: Row, item: ReviewItem, verdict: Verdict) -> None:
        sources: Sequence[int] = row.sources[row.final - len(row.prompt) :]
        positions: Sequence[int] = range(len(sources))
        kept: Sequence[int] = range(verdict.num_accepted)
        if item.tree is not None:
            sources, positions, kept = item.tree.sources, item.tree.depths, verdict.path
        for reviews in (self._stats.reviews, row.stats.reviews):
            reviews.add(sources, positions, kept)

    def _review_items(self, level: int, reviews: Sequence[tuple[Row, Review]]) -> list[ReviewItem]:
        """The rows' drafts as chains or trees. Branches never cost another row its pages: they fit
        what is free, or stay away."""
        neural = self._neural[level]
        if not any(action.nodes or action.siblings for _, action in reviews):
            return [self._review_item(row, level, None, 0) for row, _ in reviews]
        spare = neural.pages.available_pages
        spare -= sum(neural.pages.missing(row.slot, row.length) for row, _ in reviews)
        items = []
        for row, action in reviews:
            tree, siblings = None, action.siblings if level else 0
            if siblings:
                row.drafts(self._tokens)  # keeps what the review may reject
            if action.nodes:
                slots = PAGE_TOKENS * (pages_for(row.length) + spare) - row.frontier[level]
                nodes = min(action.nodes, slots)
                tree = row.review_tree(level, nodes, neural.context, self._tokens)
            if tree is not None:
                slots = row.frontier[level] + len(tree)
                spare -= pages_for(slots) - pages_for(row.length)
            items.append(self._review_item(row, level, tree, siblings))
        return items

    def _retire(self, level: int, rows: Sequence[Row]) -> None:
        """A draft whose logits are not numbers costs its drafts, never the answer."""
        for row in rows:
            row.retire(level)
            self._audience.watcher.retired(row, level)
            self._tokens.forget(row.slot, row.length)
            for each in self._neural:
                each.truncate(row.slot, row.length - 1)

    def _review_item(
        self, row: Row, level: int, tree: TokenTree | None, siblings: int
    ) -> ReviewItem:
        try:
            return review_item(row, level, self._tokens, tree, siblings)
        except Exception as error:
            raise self._roster.fail(
                [row], f"allowed_tokens of {row.request_id}: {error}"
            ) from error
