"""Drafts that are reviewed where they are made: which steps of an engine can be one action of the
device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

import torch

from cascade_engine.engine.items import logprob_request, rejection_of
from cascade_engine.engine.row import Row
from cascade_engine.engine.watching import Watcher
from cascade_engine.levels import (
    DraftedTree,
    NeuralLevel,
    Proposal,
    ReviewItem,
    Speculated,
    Speculation,
    StatisticalLevel,
    TokenTree,
    Verdict,
)
from cascade_engine.policy import Action, Draft, Policy, Review, RowState


class Speculating:
    """Takes over what the statistical level, number `level`, drafts and one neural level reviews
    right after it, for all rows in the same way. What is drafted for a row is what the statistical
    level would have drafted when asked once; the tokens are those of any other way."""

    def __init__(
        self, speculations: Sequence[Speculation | None], neural: Sequence[NeuralLevel]
    ) -> None:
        self._speculations = speculations
        self._level = len(neural)
        self._contexts = [level.context for level in neural]

    @classmethod
    def of(cls, neural: Sequence[NeuralLevel], statistical: StatisticalLevel) -> Speculating | None:
        """None where the backend drafts on the host."""
        speculations = [Speculation.of(level, statistical) for level in neural]
        return cls(speculations, neural) if any(speculations) else None

    def taken(
        self, policy: Policy, actions: Sequence[tuple[Row, Action]]
    ) -> tuple[int, list[tuple[Row, Draft]]] | None:
        """The lowest neural level that the policy lets review any of the statistical drafts among
        these actions next, whatever is found, and those that it reviews: the others can wait for
        it. Rows that it is to review as they are go along, with drafts of no tokens. None where
        something of a row has to be looked at between, or others wait for such a review."""
        found: dict[int, list[tuple[Row, Draft]]] = {}
        others: list[tuple[Row, Action]] = []
        for row, action in actions:
            if not isinstance(action, Draft) or action.level != self._level:
                others.append((row, action))
                continue
            level = _reviews_next(policy, row.state(self._contexts), action)
            if level is None:
                return None
            found.setdefault(level, []).append((row, action))
        level = max(found)
        group, speculation = found[level], self._speculations[level]
        trees = group[0][1].nodes > 0
        if speculation is None or any((action.nodes > 0) != trees for _, action in group):
            return None
        for row, action in others:
            if action == Review(level):
                group.append((row, Draft(self._level, 0)))
            elif action.level >= level:
                return None
        simple = all(_is_simple(row, level, trees) for row, _ in group)
        fits = simple and speculation.fits(self._asked(level, group))
        return (level, group) if fits else None

    def review(
        self,
        level: int,
        lenience: float,
        drafts: Sequence[tuple[Row, Draft]],
        watcher: Watcher | None = None,
    ) -> list[tuple[ReviewItem, Verdict]]:
        """Drafts and reviews what `taken` gave, as the level's review does alone: the rows' tokens
        are written, their bookkeeping is the caller's. `watcher` hears of the drafts, which took no
        time of their own, and of what is reviewed. Raises ValueError like a review."""
        speculation, trees = self._speculations[level], drafts[0][1].nodes > 0
        assert speculation is not None
        asked = self._asked(level, drafts)
        for row, _ in drafts:
            row.reviews += 1
        found = speculation.review(
            asked,
            trees,
            self._level,
            1.0 if level == 0 else lenience,
            probs=level > 0 or watcher is not None,
            heard=None if watcher is None else partial(self._tell, watcher, drafts),
        )
        if watcher is None:
            self._append(drafts, [item for item, _ in found])
        return found

    def _append(self, drafts: Sequence[tuple[Row, Draft]], items: Sequence[ReviewItem]) -> None:
        for (row, _), item in zip(drafts, items, strict=True):
            if item.tree is None:
                row.append_draft(self._level, item.length - row.length)
            else:
                row.stats.levels[self._level].drafted += item.drafted

    def _tell(
        self,
        watcher: Watcher,
        drafts: Sequence[tuple[Row, Draft]],
        items: Sequence[ReviewItem],
    ) -> None:
        begins = [row.length for row, _ in drafts]
        self._append(drafts, items)
        for (row, action), item, begin in zip(drafts, items, begins, strict=True):
            if action.nodes:
                watcher.branched(row, begin, _drafted_tree(item.tree))
            elif action.tokens:
                watcher.drafted(row, row.length - begin)
        watcher.passed("draft", self._level, time.perf_counter(), 0.0)
        watcher.reviewing([row for row, _ in drafts], items)

    def _asked(self, level: int, drafts: Sequence[tuple[Row, Draft]]) -> list[Speculated]:
        return [
            Speculated(
                Proposal(row.slot, row.length, action.nodes or action.tokens, row.prediction),
                min(action.tokens, self._contexts[level] - row.length),
                row.sampler,
                row.frontier[level],
                rejection_of(row, level),
                logprob_request(row, level),
            )
            for row, action in drafts
        ]


def _drafted_tree(tree: TokenTree | None) -> DraftedTree:
    """As the statistical level gives them; None: it found nothing."""
    tree = tree or TokenTree([], [], [], [])
    return DraftedTree(
        torch.tensor(tree.tokens, dtype=torch.int32),
        torch.tensor(tree.parents, dtype=torch.int32),
        torch.tensor(tree.chances(), dtype=torch.float32),
    )


def _is_simple(row: Row, level: int, trees: bool) -> bool:
    """Nothing of the row is wanted on the host before or beside its review. Drafts that it has go
    along in a chain, as far as nobody asks how likely they were."""
    asks = row.allowed is not None or row.tree is not None
    certain = row.length == row.frontier[level] if trees or level else True
    return not asks and certain


def _reviews_next(policy: Policy, state: RowState, draft: Draft) -> int | None:
    """The level that reviews right after these drafts, however many are found."""
    if draft.nodes:
        return (
            0
            if policy.next_action(state._replace(widened=True)) == Review(0, draft.nodes)
            else None
        )
    longer = state._replace(length=state.length + draft.tokens, room=state.room - draft.tokens)
    found, other = map(policy.next_action, (longer, state._replace(exhausted=True)))
    return found.level if found == other == Review(found.level) else None
