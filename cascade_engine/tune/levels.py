"""Levels that review by looking up what was recorded, for an engine that decodes without models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cascade_engine.cache import PageTable, pages_for
from cascade_engine.levels import MAX_NODES, DraftItem, NeuralLevel, ReviewItem, TokenRows, Verdict
from cascade_engine.tune.recording import Choices, Recording, Recordings


class RecordedLevel(NeuralLevel):
    """Stands in for `level`: number 0, the target, says what the recorded answers say; number i
    what draft i - 1 chose. Greedy requests alone. Pages are kept as the model's would be."""

    def __init__(
        self, level: NeuralLevel, number: int, rows: TokenRows, recordings: Recordings
    ) -> None:
        self.name, self.weights, self.context = level.name, level.weights, level.context
        self.vocab_size, self.left_padded = level.vocab_size, False
        self.rows = rows
        self._number, self.cascades = number, False
        self.drafts = level.drafts
        self._recordings = recordings
        count, capacity = rows.tokens.shape
        self.row_tokens = min(self.context, capacity)
        reach = self.row_tokens + MAX_NODES
        self.pages = PageTable(count * pages_for(reach), count, reach)
        self._row_recordings: dict[int, Recording] = {}

    def prefill(self, slot: int, tokens: int) -> None:
        self._cache(slot, tokens)

    def truncate(self, slot: int, tokens: int) -> None:
        if tokens == 0:
            self._row_recordings.pop(slot, None)
        self.pages.truncate(slot, tokens)

    def speculation(self, **options: Any) -> None:
        """No device does more at once."""

    def review(self, items: Sequence[ReviewItem], lenience: float) -> list[Verdict]:
        return [self._review(item, lenience) for item in items]

    def draft(self, items: Sequence[DraftItem]) -> list[int]:
        """What as many reviews of nothing would append."""
        counts = []
        for item in items:
            recording = self._recording(item.slot, item.length)
            text = self.rows.read(item.slot, len(recording.prompt), item.length)
            node, count, confidence = recording.node_of(text), 0, 1.0
            ended = False
            while not ended and count < self._room(item) and confidence >= item.min_confidence:
                choices = self.choices(recording, node)
                at = item.length + count
                ended = item.sampler.ends_drafts(choices.tokens[0], at)
                self.rows.append(item.slot, at, choices.tokens[:1], choices.probs[:1])
                node = recording.child(node, choices.tokens[0])
                confidence *= choices.probs[0]
                count += 1
            self._cache(item.slot, item.length + count - 1)
            counts.append(count)
        return counts

    def _room(self, item: DraftItem) -> int:
        return min(item.tokens, 1 + self.row_tokens - item.length)

    def _cache(self, slot: int, end: int) -> None:
        self.pages.reserve(slot, end, lambda source, target: None)
        self.pages.length[slot] = max(self.pages.length[slot], end)

    def _review(self, item: ReviewItem, lenience: float) -> Verdict:
        self._cache(item.slot, item.frontier + item.drafted)
        recording = self._recording(item.slot, item.frontier)
        begin = len(recording.prompt)
        node = recording.node_of(self.rows.read(item.slot, begin, item.frontier))
        judge = _Judge(self, recording, item, lenience)
        path, own = judge.tree(node) if item.tree is not None else judge.chain(node)
        accepted = len(path)
        self.rows.append(item.slot, item.frontier, [*judge.kept, own], judge.probs)
        if item.tree is None:
            return Verdict(accepted, own, (), (), accepted, judge.siblings())
        unmoved = next((i for i, at in enumerate(path) if at != i), accepted)
        self.pages.truncate(item.slot, item.frontier + accepted)
        return Verdict(accepted, own, (), path, unmoved, judge.siblings())

    def _recording(self, slot: int, length: int) -> Recording:
        found = self._row_recordings.get(slot)
        if found is None:
            found = self._recordings.of_row(self.rows.read(slot, 0, length))
            self._row_recordings[slot] = found
        return found

    def choices(self, recording: Recording, node: int) -> Choices:
        """What this level chooses behind a node; behind the end of an answer, its last token."""
        if self._number:
            draft = self._number - 1
            return recording.choices(draft, node, self._recordings.models[draft])
        answer = recording.answer
        return Choices([answer[min(node, len(answer) - 1)]], [1.0])


class _Judge:
    """One review, as `accept` of ce/accept.h does it."""

    def __init__(
        self, level: RecordedLevel, recording: Recording, item: ReviewItem, lenience: float
    ) -> None:
        self._level, self._recording, self._item = level, recording, item
        self._lenience = lenience
        self.kept: list[int] = []
        self.probs: list[float] = []
        """Of the tokens left, the own one included."""
        self._seen: list[Choices] = []

    def chain(self, node: int) -> tuple[list[int], int]:
        """The drafted tokens kept, as their numbers, and the own token."""
        item, rows = self._item, self._level.rows
        drafted = rows.read(item.slot, item.frontier, item.length)
        vouched = rows.read_probs(item.slot, item.frontier, item.length)
        for token, prob in zip(drafted, vouched, strict=True):
            choices = self._choices(node)
            passes = token == choices.tokens[0]
            if not passes and self._lenience > 1.0:
                passes = choices.prob_of(token) > prob / self._lenience
            if not passes:
                return list(range(len(self.kept))), self._own(choices)
            self._keep(token, choices.prob_of(token) if self._lenience > 1.0 else prob)
            node = self._recording.child(node, token)
        return list(range(len(self.kept))), self._own(self._choices(node))

    def tree(self, node: int) -> tuple[list[int], int]:
        """The nodes of the tree that were kept, and the own token."""
        tree = self._item.tree
        assert tree is not None
        path: list[int] = []
        at = -1
        while True:
            choices = self._choices(node)
            children = [j for j in range(at + 1, len(tree)) if tree.parents[j] == at]
            at = next((j for j in children if tree.tokens[j] == choices.tokens[0]), -1)
            if at < 0 and self._lenience > 1.0:
                passing = [
                    (choices.prob_of(tree.tokens[j]), -j)
                    for j in children
                    if choices.prob_of(tree.tokens[j]) > tree.probs[j] / self._lenience
                ]
                at = -max(passing)[1] if passing else -1
            if at < 0:
                return path, self._own(choices)
            token = tree.tokens[at]
            own = choices.prob_of(token) if self._lenience > 1.0 else tree.probs[at]
            self._keep(token, own)
            path.append(at)
            node = self._recording.child(node, token)

    def siblings(self) -> list[list[tuple[int, float]]]:
        """The runners-up at each position that the review leaves."""
        wanted = self._item.siblings
        if not wanted:
            return []
        left = [*self.kept, self._seen[-1].tokens[0]]
        return [
            [pair for pair in zip(*choices, strict=True) if pair[0] != token][:wanted]
            for token, choices in zip(left, self._seen, strict=True)
        ]

    def _choices(self, node: int) -> Choices:
        found = self._level.choices(self._recording, node)
        self._seen.append(found)
        return found

    def _keep(self, token: int, prob: float) -> None:
        self.kept.append(token)
        self.probs.append(prob)

    def _own(self, choices: Choices) -> int:
        self.probs.append(choices.probs[0])
        return choices.tokens[0]
