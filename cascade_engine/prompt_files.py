"""Prompts in files and on standard input."""

from __future__ import annotations

import json
import sys
from os import PathLike
from pathlib import Path
from typing import NoReturn

from cascade_engine.errors import RequestError


def read_text(path: str | PathLike[str]) -> str:
    """A file's text. Raises RequestError unless it is UTF-8, OSError."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeError as error:
        _refuse(str(path), error)


def read_standard_input() -> str:
    """All of it. Raises RequestError unless it is UTF-8."""
    try:
        text = sys.stdin.read()
        # In the C locale Python reads bytes that are not UTF-8 as lone surrogates.
        text.encode("utf-8")
    except UnicodeError as error:
        _refuse("standard input", error)
    return text


def _refuse(where: str, error: UnicodeError) -> NoReturn:
    at = error.start if isinstance(error, (UnicodeDecodeError, UnicodeEncodeError)) else 0
    raise RequestError(
        f"{where} is not UTF-8 text, first at position {at}: convert it (iconv -t utf-8)"
    ) from None


def read_prompts(path: str | PathLike[str]) -> list[str]:
    """The prompts in a file: one a line, or with the ending .jsonl one JSON value a line, a string
    or an object with a string `prompt` (for prompts of several lines). Blank lines are left out.

    Raises RequestError for a file without prompts, lines that are none and text that is not UTF-8,
    OSError.
    """
    file = Path(path)
    lines = read_text(file).splitlines()
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if file.suffix == ".jsonl":
        prompts = [_prompt_of(line, f"{file}, line {i}") for i, line in numbered]
    else:
        prompts = [line for _, line in numbered]
    if not prompts:
        raise RequestError(f"{file} holds no prompts: give one a line")
    return prompts


def _prompt_of(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RequestError(f"{where} is not valid JSON: {error}") from None
    if isinstance(value, dict):
        value = value.get("prompt")
    if not isinstance(value, str) or not value:
        raise RequestError(f"{where}: need a JSON string, or an object with a string 'prompt'")
    return value
