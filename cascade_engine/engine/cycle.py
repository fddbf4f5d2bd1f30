"""One engine step: admit, prefill, draft and review as the policy says, emit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container, Sequence

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.engine.drafting import Drafting
from cascade_engine.engine.results import StepOutput
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.engine.slots import Slots
from cascade_engine.engine.speculating import Speculating
from cascade_engine.engine.stats import EngineStats
from cascade_engine.engine.watching import Watcher
from cascade_engine.errors import DecodingError
from cascade_engine.levels import (
    NeuralLevel,
    ReviewItem,
    StatisticalLevel,
    TokenRows,
    TokenTree,
    Verdict,
    cut,
)
from cascade_engine.policy import Action, Draft, Learner, Listener, Policy, Review

ROWS_BESIDE_NEW_ONES = 16
"""With more rows than that a shared pass takes over twice as long as the new rows alone, so their
first tokens come in a step of their own; the step after it is for all rows, whoever is new."""


class Cycle:
    """Owns the rows of all requests, waiting and running, and takes them forward.

    Rows never wait for each other except for the target's pass, which they share.
    """

    def __init__(
        self,
        neural: Sequence[NeuralLevel],
        statistical: StatisticalLevel,
        tokens: TokenRows,
        reuse_cache: bool,
        prefill_tokens: int,
    ) -> None:
        self.waiting: deque[Row] = deque()
        self.slots = Slots(neural, tokens, reuse_cache)
        self.stats = EngineStats([*(level.name for level in neural), statistical.name])
        self._neural = neural
        self.listeners: list[Listener] = []
        """Hear of every pass, review and step."""
        self._drafting = Drafting(statistical, len(neural), tokens, self.stats, self.listeners)
        self._speculating = Speculating.of(neural, statistical)
        self._tokens = tokens
        self._prefill_tokens = prefill_tokens
        self._learner: Learner | None = None
        self._contexts = [level.context for level in neural]
        self._error: DecodingError | None = None
        """What a step raises when the rows that can go on have emitted."""
        self._kept: list[StepOutput] = []
        """Outputs of a step that raised."""
        self._apart = False
        """The last step was for new rows alone."""
        self._watcher = Watcher()

    @property
    def watcher(self) -> Watcher:
        """Hears of everything that happens to rows; a plain `Watcher` is nobody."""
        return self._watcher

    @watcher.setter
    def watcher(self, watcher: Watcher) -> None:
        self._watcher = self._drafting.watcher = watcher
        watcher.enqueued(self.rows())

    @property
    def _watched(self) -> bool:
        """Somebody wants to see drafts before they are reviewed."""
        return type(self._watcher) is not Watcher

    def set_learner(self, learner: Learner | None) -> None:
        """From now on this policy hears what it learns from; rows are new to it."""
        if self._learner is not None:
            self.listeners.remove(self._learner)
        if learner is not None:
            self.listeners.append(learner)
        self._learner = learner
        for row in self.rows():
            row.record = None

    def rows(self) -> list[Row]:
        return [*self.waiting, *self.slots.running]

    def has_work(self) -> bool:
        return bool(self.waiting or self.slots.running or self._kept)

    def enqueue(self, rows: Sequence[Row]) -> None:
        self.waiting.extend(rows)
        self.stats.requests["added"] += len(rows)
        self.stats.prompt_tokens += sum(row.stats.prompt_tokens for row in rows)
        self._watcher.enqueued(rows)

    def drop(self, request_id: str) -> bool:
        """Forgets a request's rows and frees what they hold; False if there are none."""
        dropped = [row for row in self.rows() if row.request_id == request_id]
        for row in dropped:
            if row.slot == NO_SLOT:
                self.waiting.remove(row)
            else:
                self._drafting.forget(row)
                self.slots.release(row)
            self._watcher.dropped(row)
        self._kept = [out for out in self._kept if out.request_id != request_id]
        self.stats.requests["aborted"] += len(dropped)
        return bool(dropped)

    def token_ids(self, row: Row) -> list[int]:
        """The prompt and what was emitted."""
        if row.slot == NO_SLOT:
            return row.tokens
        return self._tokens.read(row.slot, 0, row.final)

    def check_integrity(self) -> None:
        """Raises AssertionError unless rows, frontiers and every level's pages agree."""
        for row in self.slots.running:
            chain = [len(row.prompt), *row.frontier, row.length, row.limit]
            assert chain == sorted(chain), f"frontiers of {row.request_id}: {chain}"
            assert len(row.sources) == row.length - len(row.prompt), "sources and length differ"
            for level in self._neural:
                assert level.pages.length[row.slot] <= row.length - 1, f"{level.name} is ahead"
        distributions = self._tokens.distributions
        assert not (distributions and distributions.held), "distributions outlived their review"
        self.slots.check_integrity()

    def step(self, policy: Policy) -> list[StepOutput]:
        """Every running row drafts as the policy says and is reviewed once by the target.

        Raises DecodingError when requests had to be dropped; what the others emitted is delivered
        by the next step."""
        begin, prefill = time.perf_counter(), self.stats.prefill_seconds
        emitted: list[StepOutput] = []
        try:
            emitted = self._step(policy)
            self._kept += emitted
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            outputs, self._kept = self._kept, []
            return outputs
        finally:
            seconds = time.perf_counter() - begin
            self.stats.steps += 1
            self.stats.step_seconds += seconds
            self._watcher.stepped(begin, seconds)
            for listener in self.listeners:
                listener.stepped(emitted, seconds, self.stats.prefill_seconds - prefill)

    def _step(self, policy: Policy) -> list[StepOutput]:
        while self.waiting and self.slots.admit(self.waiting[0]):
            row = self.waiting.popleft()
            cached = 0 if row.started else row.stats.cached_tokens
            self.stats.cached_prompt_tokens += cached
            row.begin()
            self._watcher.admitted(row, cached)
        deciding, first = self._prefill()
        wide = bool(first) and len(deciding) > ROWS_BESIDE_NEW_ONES
        self._apart = wide and not self._apart
        if self._apart:
            deciding = []
        reviews: list[tuple[Row, Review]] = []
        while deciding:
            actions = [(r, policy.next_action(r.state(self._contexts))) for r in deciding]
            level = max(action.level for _, action in actions)
            drafts, reviews = self._sorted(level, actions)
            if level == len(self._neural):
                together = not first and len(drafts) == len(deciding) and not self._watched
                if together and self._speculating and self._speculating.takes(policy, drafts):
                    return [self._emit(row) for row in self._speculate(self._speculating, drafts)]
                self._drafting.draft(drafts)
                continue
            if level == 0:
                break
            self._draft(level, drafts)
            self._review(level, policy.lenience, reviews)
            deciding, reviews = [row for row in deciding if row.slot != NO_SLOT], []
        last = [*reviews, *((row, Review(0)) for row in first)]
        return [self._emit(row) for row in self._review(0, 1.0, last)]

    def _prefill(self) -> tuple[list[Row], list[Row]]:
        """Feeds prompts (and what preempted rows lost) to the target, up to a budget of tokens.

        Returns the rows that may draft, and those whose rest of the prompt fits the budget: they
        go into the step's target review as they are, so that a prompt costs no pass of its own.
        """
        target, budget = self._neural[0], self._prefill_tokens
        drafting, first, chunks = [], [], []
        for row in self.slots.running:
            lag = row.length - target.pages.length[row.slot]
            if lag <= 1:
                drafting.append(row)
            elif lag <= budget:
                first.append(row)
                budget -= lag
            elif budget:
                chunks.append((row, row.length - lag + budget))
                budget = 0
        for row, end in chunks:
            if self._make_room(target, [row]):
                start, begin = target.pages.length[row.slot], time.perf_counter()
                target.prefill(row.slot, end)
                seconds = time.perf_counter() - begin
                row.stats.levels[0].seconds += seconds
                self.stats.prefill_seconds += seconds
                self._watcher.prefilled(row, start, end, begin, seconds)
        return (
            [row for row in drafting if row.slot != NO_SLOT],
            [row for row in first if row.slot != NO_SLOT],
        )

    def _sorted(
        self, level: int, actions: Sequence[tuple[Row, Action]]
    ) -> tuple[list[tuple[Row, Draft]], list[tuple[Row, Review]]]:
        """The drafts and reviews of a level. What a neural level cannot draft by itself, because it
        drafts on a device, needs the request's functions, or has tokens to judge first, becomes a
        review, which ends with one token of its own."""
        drafts: list[tuple[Row, Draft]] = []
        reviews: list[tuple[Row, Review]] = []
        for row, action in actions:
            if action.level != level:
                continue
            if isinstance(action, Review):
                reviews.append((row, action))
            elif level == len(self._neural) or self._drafts_alone(level, row):
                drafts.append((row, action))
            else:
                reviews.append((row, Review(level)))
        return drafts, reviews

    def _drafts_alone(self, level: int, row: Row) -> bool:
        able = level > 0 and self._neural[level].drafts
        return able and row.allowed is None and row.frontier[level] == row.length

    def _draft(self, level: int, drafts: Sequence[tuple[Row, Draft]]) -> None:
        """A neural level drafts for rows on its own, all their tokens in one call."""
        rows = self._make_room(self._neural[level], [row for row, _ in drafts])
        if not rows:
            return
        begin = time.perf_counter()
        items = [row.draft_item(action.tokens) for row, action in drafts if row.slot != NO_SLOT]
        try:
            counts = self._neural[level].draft(items)
        except ValueError:
            self._retire(level, rows)
            return
        for row, count in zip(rows, counts, strict=True):
            row.append_own(level, count)
            self._watcher.drafted(row, count)
        seconds = time.perf_counter() - begin
        made = [(row, Draft(level, n)) for row, n in zip(rows, counts, strict=True)]
        for listener in self._heard():
            listener.drafted(level, made, seconds)
        self.stats.count_pass(level, sum(counts), seconds, max(counts))
        for row, count in zip(rows, counts, strict=True):
            row.stats.levels[level].count_call(seconds * count / sum(counts), count)
        self._watcher.passed("draft", level, begin, seconds)

    def _review(
        self, level: int, lenience: float, reviews: Sequence[tuple[Row, Review]]
    ) -> list[Row]:
        """One pass of a level over rows; returns those that were not preempted for it."""
        rows = [row for row, _ in reviews if row.slot != NO_SLOT]
        rows = self._make_room(self._neural[level], rows)
        if not rows:
            return rows
        reviews = [(row, action) for row, action in reviews if row.slot != NO_SLOT]
        begin = time.perf_counter()
        items = self._review_items(level, reviews)
        fed = self._fed(level, items) if self._heard() else 0
        self._watcher.reviewing(rows, items)
        try:
            verdicts = self._neural[level].review(items, lenience)
        except ValueError as error:
            if level == 0:
                return self._review_alone(rows, error)
            self._retire(level, rows)
            return rows
        self._settle_all(level, rows, items, verdicts, fed, begin)
        return rows

    def _speculate(
        self, speculating: Speculating, drafts: Sequence[tuple[Row, Draft]]
    ) -> list[Row]:
        """Drafts and the target's review of them in one action; its time is the target's."""
        begin, rows = time.perf_counter(), [row for row, _ in drafts]
        try:
            found = speculating.review(drafts)
        except ValueError as error:
            return self._review_alone(rows, error)
        items, verdicts = [item for item, _ in found], [verdict for _, verdict in found]
        fed = sum(item.drafted + 1 for item in items)
        self.stats.count_pass(len(self._neural), len(rows), 0.0)
        for row in rows:
            row.stats.levels[len(self._neural)].count_call(0.0)
        self._settle_all(0, rows, items, verdicts, fed, begin)
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
        for listener in self._heard():
            listener.reviewed(level, rows, items, verdicts, fed, seconds)

    def _count_pass(self, level: int, rows: Sequence[Row], begin: float) -> float:
        """A pass that rows are settled by; returns the seconds it took."""
        seconds = time.perf_counter() - begin
        self.stats.count_pass(level, len(rows), seconds)
        for row in rows:
            row.stats.levels[level].count_call(seconds / len(rows))
        self._watcher.passed("review", level, begin, seconds)
        return seconds

    def _heard(self) -> list[Listener]:
        """Who wants to hear of passes now."""
        return [each for each in self.listeners if each.listening]

    def _fed(self, level: int, items: Sequence[ReviewItem]) -> int:
        """Tokens that a level has to read for a review."""
        cached = self._neural[level].pages.length
        return sum(item.frontier + item.drafted - cached[item.slot] for item in items)

    def _settle(self, level: int, row: Row, item: ReviewItem, verdict: Verdict) -> None:
        """Takes over what a review decided for a row."""
        if item.unanswered:
            verdict = cut(item, verdict, self._tokens)
        self._watcher.settled(row, item, verdict)
        if level == 0:
            self._count_review(row, item, verdict)
        row.settle(level, verdict, item.tree)
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
            self._watcher.reviewing([row], [item])
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
            self._error = self._failed(failed, f"{self._neural[0].name}: {error}")
        return [row for row in rows if row.slot != NO_SLOT]

    def _count_review(self, row: Row, item: ReviewItem, verdict: Verdict) -> None:
        accepted = verdict.num_accepted
        sources: Sequence[int] = row.sources[row.final - len(row.prompt) :]
        positions: Sequence[int] = range(len(sources))
        kept: Container[int] = range(accepted)
        if item.tree is not None:
            sources, positions, kept = item.tree.sources, item.tree.depths, set(verdict.path)
        for reviews in (self.stats.reviews, row.stats.reviews):
            reviews.add(sources, positions, kept, accepted)

    def _review_items(self, level: int, reviews: Sequence[tuple[Row, Review]]) -> list[ReviewItem]:
        """The rows' drafts as chains or trees. Branches never cost another row its pages: they fit
        what is free, or stay away."""
        neural = self._neural[level]
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
            self._watcher.retired(row, level)
            self._tokens.forget(row.slot, row.length)
            for each in self._neural:
                each.truncate(row.slot, row.length - 1)

    def _make_room(self, level: NeuralLevel, rows: Sequence[Row]) -> list[Row]:
        """Pages for feeding these rows to a level; rows preempted for it wait again."""
        preempted = self.slots.reserve(level, rows)
        self.waiting.extendleft(preempted)
        self.stats.requests["preempted"] += len(preempted)
        self._watcher.preempted(preempted)
        return [row for row in rows if row.slot != NO_SLOT]

    def _review_item(
        self, row: Row, level: int, tree: TokenTree | None, siblings: int
    ) -> ReviewItem:
        try:
            return row.review_item(level, self._tokens, tree, siblings)
        except Exception as error:
            raise self._failed([row], f"allowed_tokens of {row.request_id}: {error}") from error

    def _failed(self, rows: Sequence[Row], message: str) -> DecodingError:
        """Drops the requests that cannot go on."""
        request_ids = list(dict.fromkeys(row.request_id for row in rows))
        for request_id in request_ids:
            self.drop(request_id)
        return DecodingError(message, request_ids)

    def _emit(self, row: Row) -> StepOutput:
        """Delivers the tokens that the target has just reviewed; frees a row that they end."""
        out = row.emit(self._tokens.read(row.slot, row.final, row.length))
        self.stats.new_tokens += len(out.pieces)
        self._watcher.emitted(row, out)
        if out.finish_reason is not None:
            self._drafting.finish(row)
            self.slots.release(row)
            self.stats.requests["finished"] += 1
        return out
