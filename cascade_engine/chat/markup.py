"""Which parts of a prompt are markup: special tokens that the template wrote, and no message.

A message that contains the text of a special token is disguised while the template runs: the
token's first character is replaced by one that no text uses. So the template sees every message
nearly as it is, and whatever special token is in its output is its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cascade_engine.chat.encoding import encode_inside
from cascade_engine.tokenizer import Tokenizer

# Tokens that a template writes out, whether or not the vocabulary calls them special.
WRITTEN = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]")
# Code points that no text uses; they stand in for characters while a template runs.
PRIVATE = range(0x100000, 0x10FFFE)


@dataclass(frozen=True)
class Call:
    """What a template is given."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    variables: dict[str, Any]

    def texts(self) -> Iterator[str]:
        for message in self.messages:
            yield from _strings({k: v for k, v in message.items() if k != "role"})
        yield from _strings(self.variables)

    def with_texts(self, change: Callable[[str, bool], str]) -> Call:
        """The same with every text but roles and names of fields replaced by change(text, whether
        the assistant wrote it)."""
        messages = []
        for message in self.messages:
            own = message["role"] == "assistant"
            rest = {k: _replaced(v, change, own) for k, v in message.items() if k != "role"}
            messages.append({"role": message["role"], **rest})
        return Call(messages, self.add_generation_prompt, _replaced(self.variables, change, False))


@dataclass(frozen=True)
class Markup:
    """Texts that are tokens of their own: `special` everywhere, `written` (tokens that the template
    writes) in what others than the assistant say."""

    special: dict[str, int]
    written: frozenset[str]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: str, named: Iterable[str]) -> Markup:
        special = {text: number for text, number in tokenizer.special_ids().items() if text}
        candidates = {*WRITTEN.findall(template), *named} - special.keys()
        pieces = set(tokenizer.pieces()) if candidates else set()
        written = frozenset(text for text in candidates & pieces if text)
        return cls(special, written, _any_of(special))

    def found(self, text: str) -> list[str]:
        """Special tokens in a text, in order."""
        return self.pattern.findall(text)

    def shown(self) -> str:
        return ", ".join(sorted(self.special, key=len)[:4])

    def encode(self, tokenizer: Tokenizer, text: str, disguise: Disguise) -> list[int]:
        """Token ids of a rendered text whose special tokens are all the template's."""
        if not disguise.is_in(text):
            ids = tokenizer.encode(text, add_bos=False, add_eos=False, parse_special=True)
            if self._counts(ids) == [self.special[name] for name in self.found(text)]:
                return ids
        ids, position = [], 0
        for match in self.pattern.finditer(text):
            ids += self._plain(tokenizer, text[position : match.start()], ids, disguise)
            ids.append(self.special[match[0]])
            position = match.end()
        return ids + self._plain(tokenizer, text[position:], ids, disguise)

    def _counts(self, ids: list[int]) -> list[int]:
        numbers = set(self.special.values())
        return [token for token in ids if token in numbers]

    def _plain(
        self, tokenizer: Tokenizer, text: str, before: list[int], disguise: Disguise
    ) -> list[int]:
        """Token ids of a text without special tokens, behind `before`. It is taken apart behind
        every disguised character, so that no tokenizer meets a token's whole text in it."""
        ids: list[int] = []
        for i, part in enumerate(disguise.parts(text)):
            if i == 0 and not before:
                ids += tokenizer.encode(part, add_bos=False, add_eos=False)
            elif i == 0:
                ids += self._behind(tokenizer, part, before[-1])
            else:
                ids += encode_inside(tokenizer, part)
        return ids

    def _behind(self, tokenizer: Tokenizer, text: str, token: int) -> list[int]:
        """A text that follows a special token, encoded as the tokenizer does it there."""
        name = next(name for name, number in self.special.items() if number == token)
        ids = tokenizer.encode(name + text, add_bos=False, add_eos=False, parse_special=True)
        if ids[:1] == [token] and len(self._counts(ids)) == 1:
            return ids[1:]
        return encode_inside(tokenizer, text)


@dataclass(frozen=True)
class Disguise:
    """Replaces the first character of what would be a token, by one that no text uses."""

    markup: Markup
    stand_ins: dict[str, str]
    texts: list[str] = field(repr=False)

    @classmethod
    def of(cls, markup: Markup, call: Call) -> Disguise:
        firsts = sorted({name[0] for name in (*markup.special, *markup.written)})
        texts = list(call.texts())
        used = set().union(*map(set, texts))
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        return cls(markup, dict(zip(firsts, free, strict=False)), texts)

    def is_needed(self) -> bool:
        return any(first in text for text in self.texts for first in self.stand_ins)

    def occurrences(self, text: str, by_assistant: bool) -> str:
        """Special tokens in a text disguised; where they overlap, each of them."""
        names = set(self.markup.special)
        if not by_assistant:
            names |= self.markup.written
        starts = {at for name in names for at in _positions(name, text)}
        characters = list(text)
        for at in starts:
            characters[at] = self.stand_ins[text[at]]
        return "".join(characters)

    def everything(self, text: str, by_assistant: bool) -> str:
        """Every character disguised that could begin a special token."""
        return text.translate({ord(first): other for first, other in self.stand_ins.items()})

    def is_in(self, text: str) -> bool:
        return any(stand_in in text for stand_in in self.stand_ins.values())

    def parts(self, text: str) -> list[str]:
        """The text as it was, in parts that each end with a disguised character."""
        originals = {stand_in: first for first, stand_in in self.stand_ins.items()}
        parts, begin = [], 0
        for i, character in enumerate(text):
            if character in originals:
                parts.append(text[begin:i] + originals[character])
                begin = i + 1
        return [part for part in (*parts, text[begin:]) if part]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; nothing where there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else r"(?!)")


def _positions(name: str, text: str) -> Iterator[int]:
    at = text.find(name)
    while at >= 0:
        yield at
        at = text.find(name, at + 1)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, change: Callable[[str, bool], str], own: bool) -> Any:
    if isinstance(value, str):
        return change(value, own)
    if isinstance(value, Mapping):
        return {
            _replaced(key, change, own): _replaced(item, change, own) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_replaced(item, change, own) for item in value]
    return value
