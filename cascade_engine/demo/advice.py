"""Advice questions answered in lists, with the points and expansions of each answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from .advice_topics import TOPICS
from .sums import BOYS, GIRLS

NUMBER_WORDS = ("three", "four", "five", "six", "seven", "eight")
_PLAIN = (
    "How can I {inf}?",
    "What are good ways to {inf}?",
    "What should I do to {inf}?",
    "Do you have advice on {ger}?",
    "What helps with {ger}?",
    "I want to {inf}. Where do I begin?",
    "Please help me to {inf}.",
    "What is important for {ger}?",
)
_COUNTED = (
    "Give me {n} tips for {ger}.",
    "Name {n} ways to {inf}.",
    "What are {n} good ideas for {ger}?",
    "How can I {inf}? List {n} points.",
    "I would like {n} hints on {ger}.",
    "Tell me {n} things that help with {ger}.",
)
_PERSONAL = (
    "{name} wants to {inf}. What would you advise?",
    "My friend {name} asks about {ger}. What can I say?",
    "How can {name} {inf}?",
    "{name} needs {n} tips for {ger}.",
)


@dataclass(frozen=True)
class Topic:
    """A topic in infinitive and gerund form, with (point, expansion) pairs in a fixed order."""

    infinitive: str
    gerund: str
    points: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Advice:
    """A question and the points that answer it; `identity` is the unit of the data splits."""

    question: str
    points: tuple[tuple[str, str], ...]

    @property
    def identity(self) -> str:
        return f"advice:{self.question}"

    @property
    def skeleton(self) -> list[str]:
        return [point for point, _ in self.points]

    @property
    def answer(self) -> str:
        return "\n".join(f"{i}. {p}: {text}" for i, (p, text) in enumerate(self.points, 1))


@cache
def topics() -> tuple[Topic, ...]:
    """All topics. Raises ValueError when a block of the text breaks the layout."""
    parsed = []
    for block in TOPICS.strip().split("\n\n"):
        head, *lines = block.split("\n")
        infinitive, _, gerund = head.partition(" | ")
        pairs = tuple((p, text) for p, _, text in (line.partition(": ") for line in lines))
        if not gerund or len(pairs) != 8 or not all(text for _, text in pairs):
            raise ValueError(f"topic {head!r} needs a gerund and 8 points with expansions")
        parsed.append(Topic(infinitive, gerund, pairs))
    return tuple(parsed)


def make_advice(rng: random.Random) -> Advice:
    """A topic, a wording and a number of points: 3-8, or the topic's own when none is asked for."""
    index = rng.randrange(len(topics()))
    topic = topics()[index]
    count = rng.randint(3, 8)
    wording = rng.choice(_PLAIN + _COUNTED * 2 + _PERSONAL * 2)
    if "{n}" not in wording:
        count = 4 + index % 3
    question = wording.format(
        inf=topic.infinitive,
        ger=topic.gerund,
        n=NUMBER_WORDS[count - 3],
        name=rng.choice(GIRLS + BOYS),
    )
    return Advice(question, topic.points[:count])
