"""From what a model wrote to the points of a skeleton; every step is linear in the text's length.

A line that begins with a number and a mark (`1.`, `1)`, `(1)`, `**1.**`, `Point 1:`) begins a
point. Text on the lines right below belongs to it; sub-bullets, what stands before the list and
remarks after it do not. Several points on one line are told apart by their running numbers. A
number with decimals, or that of a version, begins no point.
"""

# ruff: noqa: RUF001 - marks of other scripts are meant as they stand
from __future__ import annotations

import re
from dataclasses import dataclass, field

# An opening bracket, a list mark or a heading may stand before the number.
_FRONT = r"(?:[#>]{1,6}[ \t]?)?(?:[-*•–+][ \t])?(?:\*\*|__|\*|_|`)?"
_NAME = r"(?:(?:point|step|item|no\.?|nr\.?)[ \t]?#?)?"
# A digit behind the mark makes it a decimal, a version or a time of day.
_MARK = r"[(\[（]?(\d{1,3})(?:\*\*|__|\*|_|`)?(?:[.)\]:．。、）：](?!\d)|[ \t][-–—](?=[ \t]\D))"
_LINE = re.compile(_FRONT + _NAME + _MARK, re.IGNORECASE)
_SUB_BULLET = re.compile(r"(?:[-*•–◦▪+][ \t]|[a-zA-Z][.)][ \t]|\([a-zA-Z]\)|[ivx]{1,5}[.)][ \t])")
_SUB_NUMBER = re.compile(r"(\d{1,3})\.\d{1,3}(?:[.)]|[ \t]|$)")
_INLINE = re.compile(r"(?<=\s)(?:\*\*|__)?\(?(\d{1,3})(?:\*\*|__)?[.)](?:\*\*|__)?(?=\s)")
_EMPHASIS = re.compile(r"\*\*|__|(?<!\w)[*_`](?=\w)|(?<=[\w.:!?])[*_`](?!\w)")
_SPACE = re.compile(r"\s+")
_LINE_END = re.compile(r"\r\n|[\n\r\u2028\u2029\x85\v\f]")
_AFTER = re.compile(
    r"(?:after|depends on|requires|needs|builds on)[ \t](?:points?[ \t]|steps?[ \t])?"
    r"([\d#,& \tand]+)",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"\d{1,9}")
# "version 2." ends a sentence, it does not begin point 2.
_NUMBERED = frozenset(
    "version v chapter section figure table level phase part page type grade step point number "
    "no no. nr nr. item rule row line top step day week python windows".split()
)


@dataclass
class WrittenPoint:
    """A point as it was written: the number that it bore, and those it said it comes after."""

    number: int
    text: str
    after: list[int] = field(default_factory=list)


def extract_points(text: str) -> list[WrittenPoint]:
    """The points of a numbered list, in the order of the text; empty ones are left out.

    `text` begins with the list's first number where that was given to the model. Linear time.
    """
    lines = [_Line.of(line) for line in _LINE_END.split(text)]
    taken = {line.number for line in lines if line.number is not None}
    found: list[_Open] = []
    for line in lines:
        _take(line, found, taken)
    return [point for point in map(_closed, found) if point.text]


@dataclass
class _Line:
    """A line: its indent, the number that it begins with, what stands behind that number."""

    indent: int
    number: int | None
    rest: str

    @classmethod
    def of(cls, line: str) -> _Line:
        body = line.strip()
        indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip()) if body else 0
        match = _LINE.match(body)
        if match is None:
            return cls(indent, None, body)
        return cls(indent, int(match.group(1)), body[match.end() :])


@dataclass
class _Open:
    """A point that further lines may still belong to."""

    number: int
    indent: int
    parts: list[str]
    ended: bool = False
    sub_indent: int | None = None
    """From this indent on, numbers belong to a list inside the point."""


def _take(line: _Line, found: list[_Open], taken: set[int]) -> None:
    """Adds a line to the points found so far."""
    last = found[-1] if found else None
    if line.number is not None and not _is_inside(line, last, found):
        first, *others = _split_inline(line.rest, line.number, taken)
        found.append(_Open(line.number, line.indent, [first[1]]))
        found += [_Open(number, line.indent, [rest]) for number, rest in others]
    elif last is None:
        numbers = _split_inline(" " + line.rest, 0, taken)[1:]
        if len(numbers) > 1:
            found += [_Open(number, line.indent, [rest]) for number, rest in numbers]
    elif not line.rest:
        # Nothing but blanks: what follows is a remark, unless the point has no text yet.
        last.ended = any(last.parts)
    elif line.number is not None or _is_sub(line.rest, last):
        last.ended = True
    elif not last.ended:
        last.parts.append(line.rest)


def _is_inside(line: _Line, last: _Open | None, found: list[_Open]) -> bool:
    """Whether a numbered line belongs to a list inside the last point."""
    if last is None or line.indent < found[0].indent + 2:
        return False
    if last.sub_indent is not None:
        return line.indent >= last.sub_indent
    if line.indent >= last.indent + 2 and line.number != last.number + 1:
        last.sub_indent = line.indent
        return True
    return False


def _is_sub(rest: str, last: _Open) -> bool:
    if _SUB_BULLET.match(rest):
        return True
    match = _SUB_NUMBER.match(rest)
    return match is not None and int(match.group(1)) == last.number


def _split_inline(rest: str, number: int, taken: set[int]) -> list[tuple[int, str]]:
    """A line's text at running numbers inside of it: [(number, text), ...], the first being
    `number` itself. Numbers that begin a line of their own do not count."""
    parts, begin = [], 0
    for match in _INLINE.finditer(rest):
        if int(match.group(1)) != number + 1 or number + 1 in taken:
            continue
        # Only the ends of what lies between are looked at: the whole of it, once for each number
        # that does not count, would be quadratic.
        nearby = rest[max(begin, match.start() - 24) : match.start()]
        word = nearby.rstrip(" *_(").rpartition(" ")[2].lower()
        is_empty = not rest[begin : min(begin + 64, match.start())].strip(" *_:.")
        if word in _NUMBERED or (number > 0 and is_empty):
            continue
        parts.append((number, rest[begin : match.start()]))
        number, begin = number + 1, match.end()
    return [*parts, (number, rest[begin:])]


def _closed(point: _Open) -> WrittenPoint:
    text = clean(" ".join(part for part in point.parts if part))
    text, after = _split_after(text)
    again = _LINE.match(text)
    if again is not None and int(again.group(1)) == point.number:
        text = clean(text[again.end() :])
    return WrittenPoint(point.number, text, after)


def clean(text: str) -> str:
    """A point's text on one line, without emphasis and without a mark at its end."""
    text = _SPACE.sub(" ", _EMPHASIS.sub("", text)).strip(" *_`")
    if not text.endswith(("...", "etc.")):
        text = text.rstrip(" .:;,。：；，")
    return text.lstrip(" :-–—.")


def _split_after(text: str) -> tuple[str, list[int]]:
    """Takes "(after 1, 2)" off the end of a point."""
    if not text.endswith((")", "]")):
        return text, []
    begin = max(text.rfind("("), text.rfind("["))
    match = _AFTER.fullmatch(text[begin + 1 : -1].strip()) if begin >= 0 else None
    if match is None:
        return text, []
    return clean(text[:begin]), [int(number) for number in _NUMBER.findall(match.group(1))]
