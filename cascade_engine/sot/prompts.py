"""Prompts from files: texts with places for the question, the skeleton and the point.

A file holds what the user says, a line `[answer]`, and how the answer begins. Places are filled in
one pass, so that a text with braces in it is never read as a template.

`set.json` beside them may say
  completion   true: a text to be continued, for models without a chat format
  shown        how a point's text begins in the joined answer; as the answer begins, by default
  stop         texts that end a point; by default the number of the next point on a new line
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cascade_engine.errors import RequestError

FOLDER = Path(__file__).resolve().parent / "prompts"
SETS = ("default", "short", "embedded", "embedded-t5")
ANSWER_LINE = "[answer]"
_PLACE = re.compile(r"\{(question|skeleton|index|indices|point|ancestors|next|first|second)\}")
_NEEDED = {
    "skeleton": ("question",),
    "skeleton_after": ("question",),
    "expand": ("question", "index", "point"),
    "expand_after": ("question", "index", "point", "ancestors"),
    "expand_group": ("question", "index", "point", "indices"),
    "router": ("question",),
    "answer": ("question",),
}
_OF_A_POINT = ("index", "indices", "point", "next")
MAX_PROMPT_FILE = 100_000


@dataclass(frozen=True)
class Prompt:
    """One request: what the user says and how the answer begins."""

    user: str
    begin: str
    shown: str = ""
    """What stands before the model's text when it is shown."""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptFile:
    """A text with places to fill."""

    user: str
    begin: str

    @classmethod
    def parse(cls, text: str, name: str, needed: Sequence[str] = ()) -> PromptFile:
        user, mark, begin = _unified(text).rstrip("\n").partition(f"\n{ANSWER_LINE}")
        if not mark:
            raise RequestError(f"prompt {name} has no line {ANSWER_LINE!r}: add it")
        missing = [place for place in needed if f"{{{place}}}" not in text]
        if missing:
            raise RequestError(f"prompt {name} has no place {{{missing[0]}}}: add it")
        return cls(user, begin.strip("\n"))

    def fill(self, values: Mapping[str, str]) -> Prompt:
        return Prompt(fill(self.user, values), fill(self.begin, values))


@dataclass(frozen=True)
class PromptSet:
    """The prompts of all stages."""

    name: str
    files: Mapping[str, PromptFile]
    completion: bool = False
    shown: str | None = None
    stop: tuple[str, ...] = ("\n{next}.",)

    @classmethod
    def load(cls, name: str | Path) -> PromptSet:
        """A set that comes with the package, by name, or a folder of prompt files. Needed are
        skeleton.txt, expand.txt and answer.txt; other stages ask for theirs when they are used.
        Raises RequestError."""
        folder = FOLDER / name if name in SETS else Path(name)
        if not folder.is_dir():
            raise RequestError(
                f"prompts must be one of {', '.join(SETS)} or a folder, got {str(name)!r}"
            )
        files = {}
        for stage, needed in _NEEDED.items():
            path = folder / f"{stage}.txt"
            if path.is_file():
                files[stage] = PromptFile.parse(read_prompt(path), str(path), needed)
            elif stage in ("skeleton", "expand", "answer"):
                raise RequestError(f"{folder} has no {stage}.txt")
        return cls(str(name), files, **_settings(folder / "set.json"))

    def require(self, stages: Sequence[str]) -> None:
        """Raises RequestError where the set lacks one of these."""
        for stage in stages:
            if stage not in self.files:
                raise RequestError(f"prompts {self.name!r} have no {stage}.txt, which this needs")

    def places_of_points(self) -> list[str]:
        """Places before the answer of an expansion that are filled with another text for every
        point."""
        return [place for place in _OF_A_POINT if f"{{{place}}}" in self.files["expand"].user]

    def prompt(self, stage: str, values: Mapping[str, str]) -> Prompt:
        """The prompt of a stage, filled. Raises RequestError where the set lacks it, or where the
        question could be taken for a part of the prompt."""
        self.require([stage])
        if self.completion:
            self._refuse_marks(values["question"])
            values = {**values, **{k: one_line(values[k]) for k in ("ancestors",) if k in values}}
        prompt = self.files[stage].fill(values)
        shown = prompt.begin if self.shown is None else fill(self.shown, values)
        stop = tuple(fill(text, values) for text in self.stop) if "next" in values else ()
        return Prompt(prompt.user, prompt.begin, shown, stop)

    def _refuse_marks(self, question: str) -> None:
        """In a text to be continued a line's beginning tells who speaks."""
        for line in _unified(question).split("\n")[1:]:
            for mark in self._marks():
                if line.lstrip().startswith(mark):
                    raise RequestError(
                        f"the question has a line that begins with {mark!r}, as prompts "
                        f"{self.name!r} do: write it otherwise"
                    )

    def _marks(self) -> set[str]:
        """How lines of these prompts begin, up to the first colon or place."""
        texts = [text for file in self.files.values() for text in (file.user, file.begin)]
        lines = [line for text in texts for line in text.split("\n")]
        heads = {re.split(r"(?<=:)|\{", line, maxsplit=1)[0].strip() for line in lines}
        return {head for head in heads if any(c.isalpha() for c in head)}


def fill(template: str, values: Mapping[str, str]) -> str:
    """Puts values in their places, once: what a value contains is never a place."""

    def value(match: re.Match[str]) -> str:
        return values.get(match.group(1), match.group())

    return _PLACE.sub(value, template)


def read_prompt(path: Path) -> str:
    """The text of a prompt file; RequestError where it is not UTF-8 or beyond 100,000 bytes."""
    if path.stat().st_size > MAX_PROMPT_FILE:
        raise RequestError(f"{path} has more than {MAX_PROMPT_FILE} bytes")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8: {error}") from None


def one_line(text: str) -> str:
    return " ".join(text.split())


def _unified(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _settings(path: Path) -> dict[str, Any]:
    """What set.json says, as arguments of `PromptSet`."""
    if not path.is_file():
        return {}
    try:
        own = json.loads(read_prompt(path))
    except json.JSONDecodeError as error:
        raise RequestError(f"{path} is not JSON: {error}") from None
    if not isinstance(own, dict):
        raise RequestError(f"{path} must hold an object")
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "completion": (lambda value: isinstance(value, bool), "true or false"),
        "shown": (lambda value: isinstance(value, str), "a text"),
        "stop": (_is_texts, "a list of texts"),
    }
    for key, value in own.items():
        if key not in checks:
            raise RequestError(f"{path}: {key!r} must be one of {', '.join(checks)}")
        check, name = checks[key]
        if not check(value):
            raise RequestError(f"{path}: {key} must be {name}, got {value!r}")
    return {key: tuple(v) if isinstance(v, list) else v for key, v in own.items()}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text for text in value)
