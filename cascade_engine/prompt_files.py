"""Files of prompts."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path

from cascade_engine.errors import RequestError


def read_prompts(path: str | PathLike[str]) -> list[str]:
    """The prompts in a file: one a line, or with the ending .jsonl one JSON value a line, a string
    or an object with a string `prompt` (for prompts of several lines). Blank lines are left out.

    Raises RequestError for a file without prompts and for lines that are none, OSError.
    """
    file = Path(path)
    lines = file.read_text(encoding="utf-8").splitlines()
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
