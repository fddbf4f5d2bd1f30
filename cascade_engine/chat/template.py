"""A checkpoint's own chat template, with the messages' text kept apart from its markup."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cascade_engine.chat.encoding import encode_inside
from cascade_engine.chat.messages import Message, checked
from cascade_engine.chat.sandbox import Limits, Sandbox
from cascade_engine.errors import RequestError, TokenizerError
from cascade_engine.tokenizer import Tokenizer
from cascade_engine.tokenizer_files import TokenizerFiles

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
DEFAULT = "default"
# Tokens that a template writes out, whether or not the vocabulary calls them special.
MARKUP = re.compile(r"<[^<>\s]{1,60}>|\[[^\[\]\s]{1,60}\]")
# Code points that no text uses; they stand in for characters while a template runs.
PRIVATE = range(0x100000, 0x10FFFE)


class TemplateFormat:
    """Renders conversations through a template; see `ChatFormat` for what `encode` guarantees."""

    def __init__(
        self,
        name: str,
        template: str,
        special_tokens: Mapping[str, str],
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self._template = template
        self._special_tokens = dict(special_tokens)
        self._sandbox = Sandbox(name, template, limits)
        self._markup: tuple[Tokenizer, _Markup] | None = None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, as transformers' apply_chat_template gives it."""
        call = _Call(checked(messages), add_generation_prompt, dict(variables or {}))
        text = self._run(call)
        self._check_system_is_used(call, text)
        return text

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        call = _Call(checked(messages), add_generation_prompt, dict(variables or {}))
        markup = self._markup_of(tokenizer)
        disguise = _Disguise.of(markup, call)
        shown = call.with_texts(disguise.occurrences)
        text = self._run(shown)
        self._check_system_is_used(shown, text)
        if disguise.is_needed():
            # With every character gone that could begin a special token, those that are left come
            # from the template. Seeing the text as it is must not have added any.
            alone = self._run(call.with_texts(disguise.everything))
            if markup.found(alone) != markup.found(text):
                raise RequestError(
                    f"chat template {self.name} writes other special tokens depending on the "
                    "messages' text, so that their text cannot be told from its own: leave out "
                    f"{markup.shown()} in messages"
                )
        return markup.encode(tokenizer, text, disguise)

    def _markup_of(self, tokenizer: Tokenizer) -> _Markup:
        if self._markup is None or self._markup[0] is not tokenizer:
            named = self._special_tokens.values()
            self._markup = tokenizer, _Markup.of(tokenizer, self._template, named)
        return self._markup[1]

    def _run(self, call: _Call) -> str:
        # transformers defines these two even where there are none.
        values = {"tools": None, "documents": None, **self._special_tokens, **call.variables}
        values["messages"] = call.messages
        values["add_generation_prompt"] = call.add_generation_prompt
        return self._sandbox.render(values)

    def _check_system_is_used(self, call: _Call, text: str) -> None:
        """A template may pass over a system message without a word; the engine does not."""
        for i, message in enumerate(call.messages):
            if message["role"] != "system" or not message["content"].strip():
                continue
            changed = [dict(other) for other in call.messages]
            changed[i]["content"] = "".join(map(chr, PRIVATE[:3]))
            other = _Call(changed, call.add_generation_prompt, call.variables)
            if self._run(other) == text:
                raise RequestError(
                    f"chat template {self.name} leaves out messages[{i}]: it has no place for this "
                    "system message; put the text into the first user message"
                )


@dataclass(frozen=True)
class _Call:
    """What a template is given."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool
    variables: dict[str, Any]

    def texts(self) -> Iterator[str]:
        for message in self.messages:
            yield from _strings({k: v for k, v in message.items() if k != "role"})
        yield from _strings(self.variables)

    def with_texts(self, change: Callable[[str, bool], str]) -> _Call:
        """The same with every text but roles and names of fields replaced by change(text, whether
        the assistant wrote it)."""
        messages = []
        for message in self.messages:
            own = message["role"] == "assistant"
            rest = {k: _replaced(v, change, own) for k, v in message.items() if k != "role"}
            messages.append({"role": message["role"], **rest})
        return _Call(messages, self.add_generation_prompt, _replaced(self.variables, change, False))


@dataclass(frozen=True)
class _Markup:
    """Texts that are tokens of their own: `special` everywhere, `written` (tokens that the template
    writes) in what others than the assistant say."""

    special: dict[str, int]
    written: frozenset[str]
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: str, named: Iterable[str]) -> _Markup:
        special = {text: number for text, number in tokenizer.special_ids().items() if text}
        candidates = {*MARKUP.findall(template), *named} - special.keys()
        pieces = set(tokenizer.pieces()) if candidates else set()
        written = frozenset(text for text in candidates & pieces if text)
        return cls(special, written, _any_of(special))

    def found(self, text: str) -> list[str]:
        """Special tokens in a text, in order."""
        return self.pattern.findall(text)

    def shown(self) -> str:
        return ", ".join(sorted(self.special, key=len)[:4])

    def encode(self, tokenizer: Tokenizer, text: str, disguise: _Disguise) -> list[int]:
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
        self, tokenizer: Tokenizer, text: str, before: list[int], disguise: _Disguise
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
class _Disguise:
    """Replaces the first character of what would be a token, by one that no text uses."""

    markup: _Markup
    stand_ins: dict[str, str]
    texts: list[str] = field(repr=False)

    @classmethod
    def of(cls, markup: _Markup, call: _Call) -> _Disguise:
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
        return text.translate(str.maketrans(self.stand_ins))

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


def load_template(directory: str | Path, choice: str | None = None) -> TemplateFormat:
    """The template in a model directory, or its template called `choice`."""
    root = Path(directory)
    files = TokenizerFiles.read(root)
    templates = _templates(root, files)
    if not templates:
        raise RequestError(
            f"{root} has no chat template ({TEMPLATE_FILE}, or chat_template in "
            "tokenizer_config.json): choose a format, one of llama-2, vicuna, plain"
        )
    wanted = choice or (DEFAULT if len(templates) > 1 else next(iter(templates)))
    if wanted not in templates:
        raise RequestError(
            f"{root} has no chat template {wanted!r}: choose one of {', '.join(sorted(templates))}"
        )
    name = root.resolve().name if wanted == DEFAULT else f"{root.resolve().name}:{wanted}"
    return TemplateFormat(name, templates[wanted], _special_tokens(root, files))


def _templates(root: Path, files: TokenizerFiles) -> dict[str, str]:
    """Templates by name; files of their own come before what tokenizer_config.json has."""
    where = root / "tokenizer_config.json"
    value = files.config.get("chat_template")
    entries = value if isinstance(value, list) else [{"name": DEFAULT, "template": value}]
    templates = {}
    for entry in entries if value is not None else []:
        pair = (
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None,) * 2
        )
        if not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise TokenizerError(
                f"{where}: chat_template must be a text, or a list of {{'name', 'template'}} texts"
            )
        templates[pair[0]] = pair[1]
    paths = [(DEFAULT, root / TEMPLATE_FILE)]
    paths += [(path.stem, path) for path in sorted((root / TEMPLATE_FOLDER).glob("*.jinja"))]
    for name, path in paths:
        if path.is_file():
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"{path} cannot be read: {error}") from None
    return templates


def _special_tokens(root: Path, files: TokenizerFiles) -> dict[str, str]:
    """The texts that a template knows as bos_token, eos_token and so on."""
    keys = {key for values in (files.config, files.special_tokens) for key in values}
    named = {key: files.named_piece(key) for key in keys if key.endswith("_token")}
    tokens = {key: piece for key, piece in named.items() if piece is not None}
    if {"bos_token", "eos_token"} <= tokens.keys():
        return tokens
    tokenizer = Tokenizer.load(root)
    if tokenizer is not None:
        pieces = tokenizer.pieces()
        ids = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(tokenizer.eos_ids), None)}
        for key, number in ids.items():
            if number is not None:
                tokens.setdefault(key, pieces[number])
    return tokens
