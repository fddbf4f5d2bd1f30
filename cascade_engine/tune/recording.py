"""What levels choose along recorded answers: asked of the models once, then looked up.

An answer of the target is a path of nodes, one behind each of its tokens. Where a draft goes
another way there are branches. Behind each node a draft's most likely tokens are written down when
they are first needed; the nodes on the path are asked for in one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cascade_engine.errors import RequestError
from cascade_engine.levels import NeuralLevel

TOP = 16
"""Tokens written down behind each node. A token that is not among them counts as impossible, which
lenience up to this number cannot tell from the truth where a copied token is judged."""
LONGEST_BRANCH = 128
"""Tokens of drafts behind the target's frontier, at most."""


class Choices(NamedTuple):
    """A level's most likely tokens, the first its own choice, with their probabilities."""

    tokens: list[int]
    probs: list[float]

    def prob_of(self, token: int) -> float:
        return self.probs[self.tokens.index(token)] if token in self.tokens else 0.0


class DraftModel:
    """A neural draft, asked what it would choose behind a text."""

    def __init__(self, level: NeuralLevel) -> None:
        self._level = level
        self._cached: list[int] = []
        self.passes = 0

    @property
    def context(self) -> int:
        return self._level.context

    def choices(self, tokens: Sequence[int], wanted: int) -> list[Choices]:
        """Behind each of the last `wanted` tokens."""
        level, tokens = self._level, list(tokens)
        known = min(len(self._cached), len(tokens) - wanted)
        pairs = enumerate(zip(self._cached[:known], tokens, strict=False))
        known = next((i for i, (a, b) in pairs if a != b), known)
        level.truncate(0, known)
        level.rows.write(0, tokens)
        level.prefill(0, len(tokens) - wanted)
        logits = level.score(0, len(tokens), wanted)[:, : level.vocab_size]
        self._cached = tokens
        self.passes += 1
        probs = logits.softmax(-1).topk(min(TOP, level.vocab_size), -1)
        own = logits.argmax(-1).tolist()  # of equal logits the lowest token
        found = []
        for first, ids, values in zip(
            own, probs.indices.tolist(), probs.values.tolist(), strict=True
        ):
            if ids[0] != first and first in ids:
                ids.insert(0, ids.pop(ids.index(first)))
            found.append(Choices(ids, values))
        return found

    def let_go(self) -> None:
        """Leaves the level as it was found, with nothing cached."""
        self._level.truncate(0, 0)
        self._cached = []


class Recording:
    """One answer. Nodes 0..len(answer) stand behind the prompt and each of its tokens."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int], drafts: int) -> None:
        self.prompt, self.answer = list(prompt), list(answer)
        count = len(self.answer)
        self._parents = list(range(-1, count))
        self._tokens = [-1, *self.answer]
        self._children: list[dict[int, int]] = [{t: i + 1} for i, t in enumerate(self.answer)]
        self._children.append({})
        self._choices: list[dict[int, Choices]] = [{} for _ in range(drafts)]

    @property
    def nodes(self) -> int:
        return len(self._parents)

    def child(self, node: int, token: int) -> int:
        """The node behind `token`, new or not."""
        found = self._children[node].get(token)
        if found is None:
            found = self._children[node][token] = len(self._parents)
            self._parents.append(node)
            self._tokens.append(token)
            self._children.append({})
        return found

    def node_of(self, tokens: Sequence[int]) -> int:
        """Of the answer's beginning, or of a branch behind it."""
        count = len(tokens)
        if list(tokens) == self.answer[:count]:
            return count
        begin = max(0, min(count, len(self.answer)) - LONGEST_BRANCH)
        node = next(
            i for i in range(begin, count) if i >= len(self.answer) or tokens[i] != self.answer[i]
        )
        for token in tokens[node:]:
            node = self.child(node, token)
        return node

    def choices(self, draft: int, node: int, model: DraftModel) -> Choices:
        """What draft number `draft` chooses behind a node."""
        known = self._choices[draft]
        if not known:
            self._ask_path(draft, model)
        if node not in known:
            (known[node],) = model.choices(self.prompt + self._path(node), 1)
        return known[node]

    def _ask_path(self, draft: int, model: DraftModel) -> None:
        reach = min(len(self.answer), model.context - len(self.prompt))
        found = model.choices(self.prompt + self.answer[:reach], reach + 1)
        self._choices[draft].update(enumerate(found))

    def _path(self, node: int) -> list[int]:
        tokens = []
        while node > 0:
            tokens.append(self._tokens[node])
            node = self._parents[node]
        return tokens[::-1]


class Recordings:
    """The target's answers by their prompts. Raises RequestError where two prompts are the same."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        drafts: Sequence[NeuralLevel],
    ) -> None:
        self.models = [DraftModel(level) for level in drafts]
        recordings = [Recording(p, a, len(drafts)) for p, a in zip(prompts, answers, strict=True)]
        self._by_length: dict[int, dict[tuple[int, ...], Recording]] = {}
        for recording in recordings:
            prompt = tuple(recording.prompt)
            same = self._by_length.setdefault(len(prompt), {})
            if prompt in same:
                raise RequestError("a prompt is given twice: leave one out")
            same[prompt] = recording

    def let_go(self) -> None:
        """Until the next question the models are free for others."""
        for model in self.models:
            model.let_go()

    def of_row(self, tokens: Sequence[int]) -> Recording:
        """The recording whose prompt, the longest one, a row begins with."""
        for length in sorted(self._by_length, reverse=True):
            found = self._by_length[length].get(tuple(tokens[:length]))
            if found is not None:
                return found
        raise LookupError("a row that is no recorded answer")
