"""Word problems with worked solutions whose every equation is true and simple.

A story is a state (so many things of one kind) and one to three events; other schemas compare, buy,
travel and share. The solution repeats each fact as the problem states it and writes one equation
after it.
"""

from __future__ import annotations

import random

from .sums import (
    CONTAINERS,
    MAKERS,
    PLACES,
    SCENES,
    THINGS,
    Problem,
    count_of,
    draw,
    drill,
    finish,
    other_name,
    person,
    plural,
    solve,
)


def story(rng: random.Random) -> Problem:
    """A count that one to three events change, the last of them perhaps an equal sharing."""
    name, he, him = person(rng)
    noun, friend = rng.choice(THINGS), other_name(rng, name)
    things, value = plural(noun), draw(rng)
    he_cap = he.capitalize()
    start = rng.choice(("has", "has", "starts with", "owns"))
    facts = [f"{name} {start} {count_of(value, noun)}."]
    steps, numbers, kinds = [facts[0]], [value], ["story"]
    events = rng.choice((1, 1, 2, 2, 2, 3, 3))
    for index in range(events):
        divisors = [d for d in range(2, 10) if value % d == 0 and 2 <= value // d <= 12]
        if index == events - 1 and divisors and rng.random() < 0.6:
            divisor = rng.choice(divisors)
            fact = f"{he_cap} shares them equally among {divisor} friends."
            equation, value = solve(value, "/", divisor)
            question = f"How many {things} does each friend get?"
            steps += [fact, equation, f"Each friend gets {count_of(value, noun)}."]
            facts, numbers = [*facts, fact], [*numbers, divisor]
            return finish("share", numbers, [*facts, question], steps, value)
        op, amount = _event(rng, value)
        fact = _event_sentence(rng, op, amount, noun, he_cap, him, friend)
        equation, value = solve(value, op, amount)
        facts.append(fact)
        steps += [fact, equation]
        numbers.append(amount)
        kinds.append(op)
    question = rng.choice(
        (
            f"How many {things} does {name} have now?",
            f"How many {things} does {he} have in the end?",
            f"How many {things} are there now?",
        )
    )
    steps.append(f"{name} has {count_of(value, noun)} now.")
    if rng.random() < 0.2:
        facts.insert(0, rng.choice(SCENES))
    return finish("".join(kinds), numbers, [*facts, question], steps, value)


def _event(rng: random.Random, value: int) -> tuple[str, int]:
    """An operation on `value` whose result stays in 1..999."""
    options = []
    if value <= 997:
        options += ["+"] * 4
    if value >= 4:
        options += ["-"] * 4
    if 2 <= value <= 99:
        options += ["*"] * 2
    op = rng.choice(options)
    if op == "+":
        return op, draw(rng, 2, 999 - value)
    if op == "-":
        return op, draw(rng, 2, value - 1)
    return op, rng.randint(2, 9)


def _event_sentence(
    rng: random.Random, op: str, amount: int, noun: str, he: str, him: str, friend: str
) -> str:
    things = plural(noun)
    if op == "+":
        return rng.choice(
            (
                f"{he} buys {amount} more.",
                f"{he} finds {amount} more {things}.",
                f"{friend} gives {him} {amount} more.",
                f"{he} gets {amount} more {things} from {friend}.",
                f"Then {he.lower()} wins {amount} {things}.",
            )
        )
    if op == "-":
        return rng.choice(
            (
                f"{he} gives {amount} to {friend}.",
                f"{he} loses {amount} of them.",
                f"{he} sells {amount} {things}.",
                f"{friend} takes {amount} of them.",
                f"Then {he.lower()} uses up {amount} {things}.",
            )
        )
    return rng.choice(
        (
            f"After a good week {he.lower()} has {amount} times as many.",
            f"Then the number grows to {amount} times as many.",
        )
    )


def groups(rng: random.Random) -> Problem:
    """Equal groups: boxes of things, perhaps with some added or taken away."""
    noun, box, name = rng.choice(THINGS), rng.choice(CONTAINERS), person(rng)[0]
    each, boxes = rng.choice((rng.randint(2, 12), rng.randint(2, 99))), rng.randint(2, 9)
    has = f"{name} has {count_of(boxes, box)}."
    holds = f"Each {box} holds {count_of(each, noun)}."
    facts = [has, holds] if rng.random() < 0.5 else [holds, has]
    equation, value = solve(each, "*", boxes)
    numbers, steps, kind = [each, boxes], [*facts, equation], "groups"
    extra = rng.random()
    if extra < 0.35 and value <= 990:
        amount = draw(rng, 2, 999 - value)
        fact, op, kind = f"There are {amount} more on the table.", "+", "groups+"
    elif extra < 0.7 and value >= 6:
        amount = draw(rng, 2, max(2, value - 2))
        fact, op, kind = f"But {amount} of them are broken.", "-", "groups-"
    else:
        question = f"How many {plural(noun)} does {name} have?"
        steps.append(f"{name} has {count_of(value, noun)}.")
        return finish(kind, numbers, [*facts, question], steps, value)
    equation, value = solve(value, op, amount)
    good = "good " if op == "-" else ""
    question = f"How many {good}{plural(noun)} are there?"
    steps += [fact, equation, f"There are {value} {good}{plural(noun)}."]
    return finish(kind, [*numbers, amount], [*facts, fact, question], steps, value)


def compare(rng: random.Random) -> Problem:
    """Two people, one of whom has more or fewer; how many has the other, or have both."""
    name, other = person(rng)[0], ""
    other = other_name(rng, name)
    noun = rng.choice(THINGS)
    things, more = plural(noun), rng.random() < 0.5
    first = draw(rng, 5, 600)
    amount = draw(rng, 2, min(first - 1, 300))
    op, word = ("+", "more") if more else ("-", "fewer")
    facts = [f"{name} has {count_of(first, noun)}.", f"{other} has {amount} {word} than {name}."]
    equation, second = solve(first, op, amount)
    steps = [*facts, equation, f"{other} has {count_of(second, noun)}."]
    if rng.random() < 0.5 or first + second > 999:
        question = f"How many {things} does {other} have?"
        shown = facts if rng.random() < 0.7 else facts[::-1]
        return finish("compare" + op, [first, amount], [*shown, question], steps, second)
    equation, both = solve(first, "+", second)
    question = rng.choice(
        (f"How many {things} do they have together?", f"How many {things} do both have?")
    )
    steps += [equation, f"Together they have {both} {things}."]
    return finish(f"together{op}", [first, amount], [*facts, question], steps, both)


def shopping(rng: random.Random) -> Problem:
    """Buying several things at one price, then the change or the sum of two purchases."""
    name, he, _ = person(rng)
    noun, second = rng.sample(THINGS, 2)
    price, amount = rng.randint(2, 40), rng.randint(2, 9)
    facts = [f"One {noun} costs {price} coins.", f"{name} buys {amount} {plural(noun)}."]
    equation, cost = solve(price, "*", amount)
    steps, numbers = [*facts, equation], [price, amount]
    style = rng.random()
    if style < 0.3:
        question = f"How many coins does {name} pay?"
        steps.append(f"{name} pays {cost} coins.")
        return finish("pay", numbers, [*facts, question], steps, cost)
    if style < 0.65:
        budget = rng.randint(cost + 2, min(999, cost + 150))
        facts.append(f"{he.capitalize()} had {budget} coins.")
        equation, left = solve(budget, "-", cost)
        question = f"How many coins does {he} have left?"
        steps += [facts[-1], equation, f"{name} has {left} coins left."]
        return finish("change", [*numbers, budget], [*facts, question], steps, left)
    extra = draw(rng, 2, 300)
    facts.append(f"{he.capitalize()} also buys a bag of {plural(second)} for {extra} coins.")
    equation, total = solve(cost, "+", extra)
    question = "How many coins is that in all?"
    steps += [facts[-1], equation, f"In all that is {total} coins."]
    return finish("bill", [*numbers, extra], [*facts, question], steps, total)


def missing(rng: random.Random) -> Problem:
    """How many are still needed to reach a goal, or how many were taken away."""
    name, he, _ = person(rng)
    noun = rng.choice(THINGS)
    goal = draw(rng, 5)
    part = draw(rng, 2, goal - 2)
    if rng.random() < 0.5:
        facts = [
            f"{name} wants to collect {count_of(goal, noun)}.",
            f"{he.capitalize()} already has {part}.",
        ]
        question = f"How many more {plural(noun)} does {name} need?"
        last = f"{name} needs {goal - part} more."
        kind = "need"
    else:
        facts = [f"{name} had {count_of(goal, noun)}.", f"Now {he} has only {part} left."]
        question = f"How many {plural(noun)} are gone?"
        last, kind = f"So {goal - part} are gone.", "gone"
    equation, value = solve(goal, "-", part)
    return finish(kind, [goal, part], [*facts, question], [*facts, equation, last], value)


def sharing(rng: random.Random) -> Problem:
    """Equal packing: a whole divided by a table divisor, perhaps after adding two parts."""
    noun, box, maker = rng.choice(THINGS), rng.choice(CONTAINERS), rng.choice(MAKERS)
    each, boxes = rng.randint(2, 9), rng.randint(2, 12)
    whole = each * boxes
    pack = f"{each} {plural(noun)} go into each {box}."
    question = f"How many {plural(box)} does the {maker} need?"
    last = f"The {maker} needs {count_of(boxes, box)}."
    if whole < 6 or rng.random() < 0.4:
        facts = [f"A {maker} packs {whole} {plural(noun)}.", pack]
        steps = [*facts, solve(whole, "/", each)[0], last]
        return finish("pack", [whole, each], [*facts, question], steps, boxes)
    first = rng.randint(2, whole - 2)
    made = f"A {maker} has {count_of(first, noun)} and gets {whole - first} more."
    equation = solve(first, "+", whole - first)[0]
    steps = [made, equation, pack, solve(whole, "/", each)[0], last]
    return finish("pack+", [first, whole - first, each], [made, pack, question], steps, boxes)


def visitors(rng: random.Random) -> Problem:
    """Counts on two or three days, added up or compared."""
    place, days = rng.choice(PLACES), rng.choice((2, 2, 3))
    names = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    at = rng.randrange(0, 7 - days + 1)
    counts = [draw(rng, 2, 330) for _ in range(days)]
    facts = [f"On {names[at + i]} {n} people visit the {place}." for i, n in enumerate(counts)]
    if days == 2 and abs(counts[0] - counts[1]) > 1 and rng.random() < 0.5:
        high, low = max(counts), min(counts)
        best, worst = (names[at + counts.index(n)] for n in (high, low))
        question = f"How many more people come on {best} than on {worst}?"
        equation, value = solve(high, "-", low)
        steps = [*facts, equation, f"On {best} {value} more people come."]
        return finish("days-", counts, [*facts, question], steps, value)
    steps, value = [facts[0]], counts[0]
    for fact, number in zip(facts[1:], counts[1:], strict=True):
        equation, value = solve(value, "+", number)
        steps += [fact, equation]
    question = rng.choice(
        ("How many people is that in all?", f"How many people visit the {place} in all?")
    )
    steps.append(f"In all {value} people visit the {place}.")
    return finish("days+", counts, [*facts, question], steps, value)


def travel(rng: random.Random) -> Problem:
    """The same distance every day, then one more stretch or what remains of a route."""
    name, he, _ = person(rng)
    daily, days = rng.randint(2, 60), rng.randint(2, 9)
    verb = rng.choice(("walks", "rides", "drives", "sails"))
    facts = [f"{name} {verb} {daily} km each day.", f"The trip lasts {days} days."]
    facts = facts if rng.random() < 0.6 else facts[::-1]
    equation, value = solve(daily, "*", days)
    steps = [*facts, equation]
    if rng.random() < 0.4:
        steps.append(f"{name} {verb} {value} km.")
        return finish("trip", [daily, days], [*facts, f"How far does {name} go?"], steps, value)
    more = draw(rng, 2, 999 - value)
    fact = f"After that {he} {verb} {more} km more."
    equation, value = solve(value, "+", more)
    steps += [fact, equation, f"{name} {verb} {value} km."]
    text = [*facts, fact, f"How far does {name} go in all?"]
    return finish("trip+", [daily, days, more], text, steps, value)


SCHEMAS = (
    [story] * 6
    + [groups, groups, compare, compare, shopping, shopping, missing, sharing]
    + [visitors, travel, drill, drill]
)


def make_problem(rng: random.Random) -> Problem:
    """One problem of a schema drawn at random."""
    return rng.choice(SCHEMAS)(rng)
