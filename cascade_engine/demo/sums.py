"""What the word problems are made of: words, numbers, people, equations.

Equations are chained so that each link is a step one could do in the head:

    347 + 285 = 500 + 132 = 632        hundreds first, then the rest
    432 - 285 = 232 - 85 = 147         take the hundreds away, then the rest
    24 * 6 = 120 + 24 = 144            tens first, then ones
    56 / 7 = 8                         from the tables (divisor 2-9, quotient 2-12)
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .formats import FINAL_ANSWER


def words(text: str) -> list[str]:
    return text.split()


GIRLS = words(
    """
    Sally Anna Maria Lena Ruth Nina Clara Emma Julia Sara Mia Rosa Vera Ida Hanna Olga Tina
    Zoe Kate Lucy Grace Nora Alice Dora
    """
)
BOYS = words(
    """
    Tom Ben Paul Mark Leo Max Felix Oscar Peter David Jack Sam Noah Adam Hugo Karl Ivan Omar
    Luis Finn Eric Henry George Victor
    """
)
THINGS = words(
    """
    apple pear orange lemon plum marble stamp sticker coin shell button pencil book card bead
    ribbon balloon cookie muffin candle egg nut stone photo ticket badge brick flower seed toy
    carrot potato onion lamp cup spoon hat glove sock key
    """
)
CONTAINERS = words(
    """
    box bag basket crate jar drawer shelf tray case bucket
    """
)
MAKERS = words(
    """
    baker farmer teacher gardener potter painter tailor printer
    """
)
PLACES = words(
    """
    shop market school farm library museum bakery garden station harbour
    """
)
SCENES = (
    "It is a sunny morning.",
    "It is raining outside.",
    "The holidays have begun.",
    "It is market day.",
    "School is over.",
    "The fair is in town.",
    "It is a quiet evening.",
)


@dataclass
class Problem:
    """One word problem. `identity` names the schema and its numbers: the unit of the data splits."""

    kind: str
    numbers: list[int]
    question: str
    steps: list[str] = field(default_factory=list)
    answer: int = 0

    @property
    def identity(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.numbers))}"

    @property
    def solution(self) -> str:
        return " ".join([*self.steps, FINAL_ANSWER.format(self.answer)])


def plural(noun: str) -> str:
    """The plural of a noun of this module's lists."""
    if noun == "box":
        return "boxes"
    if noun == "shelf":
        return "shelves"
    return noun[:-1] + "ies" if noun.endswith("ry") else noun + ("es" if noun == "potato" else "s")


def count_of(number: int, noun: str) -> str:
    """`1 apple`, `7 apples`."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def solve(a: int, op: str, b: int) -> tuple[str, int]:
    """The chained equation for `a op b` and its value; results lie in 0..999.

    Raises ValueError for an operator other than + - * / or a division with a remainder.
    """
    if op == "+":
        value, middle = a + b, ""
        if a >= 100 or b >= 100:
            hundreds, rest = a // 100 * 100 + b // 100 * 100, a % 100 + b % 100
            middle = f"{hundreds} + {rest} = " if rest else ""
    elif op == "-":
        value, middle = a - b, ""
        if b >= 100 and b % 100:
            middle = f"{a - b // 100 * 100} - {b % 100} = "
    elif op == "*":
        value, middle = a * b, ""
        if a > 12 and a % 10:
            middle = f"{a // 10 * 10 * b} + {a % 10 * b} = "
    elif op == "/" and a % b == 0:
        value, middle = a // b, ""
    else:
        raise ValueError(f"op must be one of + - * / with an exact result, got {a} {op} {b}")
    return f"{a} {op} {b} = {middle}{value}.", value


def draw(rng: random.Random, low: int = 2, high: int = 999) -> int:
    """A number in low..high: about a third small, a third of two digits, a third of three."""
    top = rng.choice((20, 20, 99, 99, 99, 999, 999))
    return rng.randint(low, max(low, min(top, high)))


def person(rng: random.Random) -> tuple[str, str, str]:
    """Name, subject pronoun and object pronoun."""
    if rng.random() < 0.5:
        return rng.choice(GIRLS), "she", "her"
    return rng.choice(BOYS), "he", "him"


def other_name(rng: random.Random, *names: str) -> str:
    return rng.choice([n for n in GIRLS + BOYS if n not in names])


def finish(
    kind: str, numbers: list[int], text: list[str], steps: list[str], answer: int
) -> Problem:
    """A problem from its sentences (facts, then the question) and its solution steps."""
    return Problem(kind, numbers, " ".join(text), steps, answer)
