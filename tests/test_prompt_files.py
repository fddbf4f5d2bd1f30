"""Files of prompts: lines, JSON lines, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cascade_engine.errors import RequestError
from cascade_engine.prompt_files import read_prompts


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('one \n\n{"prompt": 2}\n', "utf-8")
    assert read_prompts(file) == ["one ", '{"prompt": 2}']


def test_json_lines_may_have_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a\\nb"\n\n{"prompt": "c", "task": 1}\n', "utf-8")
    assert read_prompts(str(file)) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("\n \n", "holds no prompts"),
        ('"a"\n{"text": "b"}', "line 2: need a JSON string, or an object with a string 'prompt'"),
        ("3", "line 1: need a JSON string"),
        ("{", "line 1 is not valid JSON"),
    ],
)
def test_what_is_no_prompt_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text, "utf-8")
    with pytest.raises(RequestError, match=message):
        read_prompts(file)
