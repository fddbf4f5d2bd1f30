"""What the word problems are made of (words, numbers, people, equations), and bare calculations.

Equations are chained so that each link is a step one could do in the head:

    347 + 285 = 547 + 85 = 627 + 5 = 632     hundreds, then tens, then ones
    432 - 285 = 232 - 85 = 152 - 5 = 147     the same when taking away
    24 * 6 = 120 + 24 = 140 + 4 = 144        tens times six plus ones times six, then added
    56 / 7 = 8                               from the tables (divisor 2-9, quotient 2-12)
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
    """The chained equation for `a op b` and its value.

    Raises ValueError for an operator other than + - * / or a division with a remainder.
    """
    links = [f"{a} {op} {b}"]
    if op == "*" and a > 12 and a % 10:
        a, op, b = a // 10 * 10 * b, "+", a % 10 * b
        links.append(f"{a} + {b}")
    if op in ("+", "-"):
        sign = 1 if op == "+" else -1
        for unit in (100, 10):
            head, rest = b // unit * unit, b % unit
            if head and rest:
                a, b = a + sign * head, rest
                links.append(f"{a} {op} {b}")
        value = a + sign * b
    elif op == "*":
        value = a * b
    elif op == "/" and a % b == 0:
        value = a // b
    else:
        raise ValueError(f"op must be one of + - * / with an exact result, got {a} {op} {b}")
    return f"{' = '.join(links)} = {value}.", value


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


def drill(rng: random.Random) -> Problem:
    """A bare calculation, asked in words."""
    op = rng.choice("+++---**/")
    if op == "+":
        a = draw(rng, 2, 990)
        b = draw(rng, 2, 999 - a)
    elif op == "-":
        a = draw(rng, 4, 999)
        b = draw(rng, 2, a - 1)
    elif op == "*":
        a, b = rng.choice((rng.randint(2, 12), rng.randint(2, 99))), rng.randint(2, 9)
    else:
        b = rng.randint(2, 9)
        a = b * rng.randint(2, 12)
    wording = rng.choice(("What is {}?", "Work out {}.", "How much is {}?", "Please calculate {}."))
    equation, value = solve(a, op, b)
    return finish("drill" + op, [a, b], [wording.format(f"{a} {op} {b}")], [equation], value)
