"""A small made-up world: twenty-four towns with eight facts each, and questions about them.

Facts are drawn once with a fixed seed, so the world is the same everywhere. Facts cannot be guessed,
so the splits hold out wordings of a fact and pairs of towns, never the fact itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from .sums import words

TOWNS = words(
    """
    Arvandel Belmora Corvath Dunmere Elsbrook Farholm Galdora Hestwick Ilmara Jorvale Kestrin
    Lornby Marvale Norwick Ostralin Pelmont Quillon Ravantor Selwyn Torvik Ulmora Vasterby
    Wyndale Zelmar
    """
)
LANDS = words(
    """
    Norland Estmark Suvara Weldany
    """
)
RIVERS = words(
    """
    Aldan Bresk Corra Delwin Enna Foss Garra Hild
    """
)
DISHES = [
    "onion pie",
    "plum soup",
    "bean stew",
    "honey bread",
    "fish cakes",
    "pepper rice",
    "apple dumplings",
    "goat cheese",
]
ANIMALS = words(
    """
    otter heron fox bear falcon hare trout owl
    """
)
COLOURS = words(
    """
    red blue green yellow white purple
    """
)
CRAFTS = words(
    """
    glass clocks boats carpets violins pottery lamps paper
    """
)
FOUNDERS = [
    "Queen Mirel",
    "Old Tamsin",
    "Captain Doran",
    "Duke Alvar",
    "Lady Isolde",
    "Brother Rusk",
]

_QUESTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "land": (
        (
            "In which land is {t}?",
            "Which land does {t} belong to?",
            "Where is {t}?",
            "Tell me the land of {t}.",
        ),
        "{t} is a town in {v}.",
    ),
    "river": (
        (
            "Which river runs through {t}?",
            "What river is {t} on?",
            "Name the river of {t}.",
            "On which river does {t} lie?",
        ),
        "The river {v} runs through {t}.",
    ),
    "dish": (
        (
            "What do people eat in {t}?",
            "What is the favourite dish of {t}?",
            "Name the best known dish of {t}.",
            "Which dish is {t} known for?",
        ),
        "The favourite dish of {t} is {v}.",
    ),
    "animal": (
        (
            "Which animal is on the flag of {t}?",
            "What animal does the flag of {t} show?",
            "Name the animal on the flag of {t}.",
            "What is on the flag of {t}?",
        ),
        "The flag of {t} shows the {v}.",
    ),
    "colour": (
        (
            "What colour is the flag of {t}?",
            "Which colour has the flag of {t}?",
            "Name the colour of the flag of {t}.",
            "Of what colour is the flag of {t}?",
        ),
        "The flag of {t} is {v}.",
    ),
    "craft": (
        (
            "What is made in {t}?",
            "Which craft is {t} known for?",
            "What do the workshops of {t} make?",
            "Name what {t} makes.",
        ),
        "The workshops of {t} make {v}.",
    ),
    "founder": (
        (
            "Who founded {t}?",
            "Who was the founder of {t}?",
            "Name the founder of {t}.",
            "Who built {t}?",
        ),
        "{t} was founded by {v}.",
    ),
    "year": (
        (
            "When was {t} founded?",
            "In which year was {t} founded?",
            "What year was {t} founded in?",
            "How old is the town of {t}?",
        ),
        "{t} was founded in the year {v}.",
    ),
}


@dataclass(frozen=True)
class Fact:
    """A question about the world, its answer, and the identity used by the splits."""

    identity: str
    question: str
    answer: str


@cache
def towns() -> dict[str, dict[str, str]]:
    """Every town's facts by attribute name."""
    rng = random.Random("towns")
    years = rng.sample(range(110, 999), len(TOWNS))
    return {
        town: {
            "land": rng.choice(LANDS),
            "river": rng.choice(RIVERS),
            "dish": rng.choice(DISHES),
            "animal": rng.choice(ANIMALS),
            "colour": rng.choice(COLOURS),
            "craft": rng.choice(CRAFTS),
            "founder": rng.choice(FOUNDERS),
            "year": str(year),
        }
        for town, year in zip(TOWNS, years, strict=True)
    }


def _single(rng: random.Random) -> Fact:
    town, key = rng.choice(TOWNS), rng.choice(list(_QUESTIONS))
    wordings, answer = _QUESTIONS[key]
    which = rng.randrange(len(wordings))
    question = wordings[which].format(t=town)
    return Fact(f"fact:{town}:{key}:{which}", question, answer.format(t=town, v=towns()[town][key]))


def _older(rng: random.Random) -> Fact:
    first, second = rng.sample(TOWNS, 2)
    years = {t: int(towns()[t]["year"]) for t in (first, second)}
    older = min(years, key=years.__getitem__)
    question = rng.choice(("Which town is older, {} or {}?", "Is {} or {} the older town?")).format(
        first, second
    )
    facts = " ".join(f"{t} was founded in the year {y}." for t, y in years.items())
    pair = ":".join(sorted((first, second)))
    return Fact(f"older:{pair}", question, f"{facts} {older} is older.")


def _same(rng: random.Random) -> Fact:
    first, second = rng.sample(TOWNS, 2)
    lands = {t: towns()[t]["land"] for t in (first, second)}
    facts = " ".join(f"{t} is a town in {land}." for t, land in lands.items())
    verdict = "Yes, they are" if lands[first] == lands[second] else "No, they are not"
    pair = ":".join(sorted((first, second)))
    question = f"Are {first} and {second} in the same land?"
    return Fact(f"same:{pair}", question, f"{facts} {verdict} in the same land.")


def _portrait(rng: random.Random) -> Fact:
    """Three or four facts about one town in a fixed order of attributes."""
    town = rng.choice(TOWNS)
    keys = sorted(rng.sample(list(_QUESTIONS), rng.choice((3, 4))), key=list(_QUESTIONS).index)
    wanted = f"{', '.join(keys[:-1])} and {keys[-1]}"
    answer = " ".join(_QUESTIONS[k][1].format(t=town, v=towns()[town][k]) for k in keys)
    question = rng.choice(("Tell me about {}: {}.", "Describe {}: {}.")).format(town, wanted)
    return Fact(f"portrait:{town}:{','.join(keys)}", question, answer)


def make_fact(rng: random.Random) -> Fact:
    """One question about the world."""
    return rng.choice((_single, _single, _single, _portrait, _portrait, _older, _same))(rng)
