"""One engine step: admit, prefill, draft and review as the policy says, emit."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cascade_engine.engine.drafting import Drafting
from cascade_engine.engine.passes import Passes
from cascade_engine.engine.results import StepOutput
from cascade_engine.engine.roster import Roster
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.engine.segmenting import Segmenting
from cascade_engine.engine.slots import Slots
from cascade_engine.engine.speculating import Speculating
from cascade_engine.engine.stats import EngineStats
from cascade_engine.engine.watching import Audience, Watcher
from cascade_engine.errors import DecodingError
from cascade_engine.levels import NeuralLevel, StatisticalLevel, TokenRows
from cascade_engine.policy import Action, Draft, Learner, Policy, Review

ROWS_BESIDE_NEW_ONES = 16
"""With more rows than that a shared pass takes over twice as long as the new rows alone, so their
first tokens come in a step of their own; the step after it is for all rows, whoever is new."""


class Cycle:
    """Takes the rows of all requests forward, step by step.

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
        self.stats = EngineStats([*(level.name for level in neural), statistical.name])
        self.audience = Audience()
        self._drafting = Drafting(statistical, len(neural), tokens, self.stats, self.audience)
        slots = Slots(neural, tokens, reuse_cache)
        self.roster = Roster(slots, self._drafting, self.stats, self.audience)
        self._passes = Passes(neural, tokens, self.roster, self.stats, self.audience)
        self._segmenting = Segmenting(neural, statistical)
        self._speculating = Speculating.of(neural, statistical)
        self._neural = neural
        self._tokens = tokens
        self._prefill_tokens = prefill_tokens
        self._learner: Learner | None = None
        self._contexts = [level.context for level in neural]
        self._kept: list[StepOutput] = []
        """Outputs of a step that raised, or whose listeners did."""
        self._apart = False
        """The last step was for new rows alone."""

    def set_watcher(self, watcher: Watcher) -> None:
        """From now on it hears of everything that happens to rows, beginning with those there."""
        self.audience.watcher = watcher
        watcher.enqueued(self.roster.rows())

    def set_learner(self, learner: Learner | None) -> None:
        """From now on this policy hears what it learns from; rows are new to it."""
        if self._learner is not None:
            self.audience.listeners.remove(self._learner)
        if learner is not None:
            self.audience.listeners.append(learner)
        self._learner = learner
        for row in self.roster.rows():
            row.record = None

    def has_work(self) -> bool:
        return bool(self.roster.rows() or self._kept)

    def drop(self, request_id: str) -> bool:
        """Forgets a request, what it has yet to deliver included; False if it has no rows."""
        self._forget([request_id])
        return self.roster.drop(request_id)

    def token_ids(self, row: Row) -> Sequence[int]:
        """The prompt and what was emitted."""
        if row.slot == NO_SLOT:
            return row.tokens
        return self._tokens.read(row.slot, 0, row.final)

    def check_integrity(self) -> None:
        """Raises AssertionError unless rows, frontiers and every level's pages agree."""
        for row in self.roster.slots.running:
            chain = [len(row.prompt), *row.frontier, row.length, row.limit]
            assert chain == sorted(chain), f"frontiers of {row.request_id}: {chain}"
            assert len(row.sources) == row.length - len(row.prompt), "sources and length differ"
            for level in self._neural:
                assert level.pages.length[row.slot] <= row.length - 1, f"{level.name} is ahead"
        distributions = self._tokens.distributions
        assert not (distributions and distributions.held), "distributions outlived their review"
        self.roster.slots.check_integrity()

    def step(self, policy: Policy) -> list[StepOutput]:
        """Every running row drafts as the policy says and is reviewed once by the target.

        Raises DecodingError when requests had to be dropped; what the others emitted is delivered
        by the next step."""
        begin, prefill = time.perf_counter(), self.stats.prefill_seconds
        emitted: list[StepOutput] = []
        try:
            emitted = self._step(policy)
            self._kept += emitted
            if self._passes.error is not None:
                error, self._passes.error = self._passes.error, None
                raise error
        except DecodingError as error:
            self._forget(error.request_ids)
            raise
        finally:
            seconds = time.perf_counter() - begin
            self.stats.steps += 1
            self.stats.step_seconds += seconds
            self.audience.watcher.stepped(begin, seconds)
            for listener in self.audience.listeners:
                listener.stepped(emitted, seconds, self.stats.prefill_seconds - prefill)
        outputs, self._kept = self._kept, []
        return outputs

    def _step(self, policy: Policy) -> list[StepOutput]:
        self.roster.admit()
        running, new = self._prefill()
        wide = bool(new) and len(running) > ROWS_BESIDE_NEW_ONES
        self._apart = wide and not self._apart
        deciding = [] if self._apart else running + new
        reviews = [(row, Review(0)) for row in new] if self._apart else []
        while deciding:
            actions = [(r, policy.next_action(r.state(self._contexts))) for r in deciding]
            level = max(action.level for _, action in actions)
            drafts, reviews = self._sorted(level, actions)
            if level == len(self._neural):
                rows = self._draft(policy, drafts, actions)
                if rows:
                    return [self._emit(row) for row in rows]
                deciding = [row for row in deciding if row.slot != NO_SLOT]
                continue
            if level == 0:
                break
            self._passes.draft(level, drafts)
            self._passes.review(level, policy.lenience, reviews)
            deciding, reviews = [row for row in deciding if row.slot != NO_SLOT], []
        return [self._emit(row) for row in self._passes.review(0, 1.0, reviews)]

    def _draft(
        self,
        policy: Policy,
        drafts: Sequence[tuple[Row, Draft]],
        actions: Sequence[tuple[Row, Action]],
    ) -> list[Row] | None:
        """The statistical level drafts, and where nobody looks the level above reviews as well.
        Returns the rows that the target has reviewed."""
        taken = None if self.audience.watched else self._segmenting.takes(drafts)
        if taken is not None:
            self._passes.draft_segments([row for row, _ in drafts], taken, policy.lenience)
            return None
        rows = self._speculate(policy, actions)
        if rows is None:
            self._drafting.draft(drafts)
        return rows

    def _prefill(self) -> tuple[list[Row], list[Row]]:
        """Feeds prompts (and what preempted rows lost) to the target, up to a budget of tokens.

        Returns the rows that are through, and those whose rest of the prompt fits the budget: that
        goes into the step's target review, with drafts behind it, so that a prompt costs no pass of
        its own.
        """
        target, budget = self._neural[0], self._prefill_tokens
        running, new, chunks = [], [], []
        for row in self.roster.slots.running:
            lag = row.length - target.pages.length[row.slot]
            if lag <= 1:
                running.append(row)
            elif lag <= budget:
                new.append(row)
                budget -= lag
            elif budget:
                chunks.append((row, row.length - lag + budget))
                budget = 0
        for row, end in chunks:
            if self.roster.make_room(target, [row]):
                start, begin = target.pages.length[row.slot], time.perf_counter()
                target.prefill(row.slot, end)
                seconds = time.perf_counter() - begin
                row.stats.levels[0].seconds += seconds
                self.stats.prefill_seconds += seconds
                self.audience.watcher.prefilled(row, start, end, begin, seconds)
        return (
            [row for row in running if row.slot != NO_SLOT],
            [row for row in new if row.slot != NO_SLOT],
        )

    def _sorted(
        self, level: int, actions: Sequence[tuple[Row, Action]]
    ) -> tuple[list[tuple[Row, Draft]], list[tuple[Row, Review]]]:
        """The drafts and reviews of a level. What a neural level cannot draft by itself, because
        its backend does not, it needs the request's functions, or it has tokens to judge first,
        becomes a review, which ends with one token of its own."""
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

    def _speculate(self, policy: Policy, actions: Sequence[tuple[Row, Action]]) -> list[Row] | None:
        """Drafts and their review as one action. Returns the rows that the target has reviewed;
        None where the drafts are yet to be made."""
        taken = None if self._speculating is None else self._speculating.taken(policy, actions)
        if taken is None or self._speculating is None:
            return None
        level, group = taken
        rows = self._passes.speculate(self._speculating, level, policy.lenience, group)
        return rows if level == 0 else []

    def _drafts_alone(self, level: int, row: Row) -> bool:
        neural = self._neural[level]
        able = level > 0 and neural.drafts
        return able and row.allowed is None and row.frontier[level] == row.length

    def _emit(self, row: Row) -> StepOutput:
        """Delivers the tokens that the target has just reviewed; frees a row that they end."""
        out = row.emit(self._tokens.read(row.slot, row.final, row.length))
        self.stats.new_tokens += len(out.pieces)
        self.audience.watcher.emitted(row, out)
        if out.finish_reason is not None:
            self.roster.finish(row)
        return out

    def _forget(self, request_ids: Sequence[str]) -> None:
        self._kept = [out for out in self._kept if out.request_id not in request_ids]
