"""Questions with known answers: GSM8K, MMLU, and the embedded models' own test split."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cascade_engine.demo.corpus import distinct_documents
from cascade_engine.demo.scoring import is_correct

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
OWN = ("arithmetic", "fact", "advice")
"""Tasks of the embedded models."""
PUBLIC = ("gsm8k", "mmlu")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_CHOSEN = re.compile(r"answer(?: is|:)? *\(?([A-D])\b")
_LETTER = re.compile(r"\(([A-D])\)|\b([A-D])\b")


@dataclass(frozen=True)
class Question:
    prompt: str
    is_correct: Callable[[str], bool]
    """Whether an answer's text is right."""


def data_folder() -> Path:
    """CASCADE_DATA, else ../shared/data beside the checkout."""
    return Path(os.environ.get("CASCADE_DATA") or DATA)


def questions(name: str, count: int) -> list[Question]:
    """The first `count` questions of a data set (PUBLIC) or of a task of the embedded models (OWN).

    Raises FileNotFoundError, with the way out, where a public data set is not there.
    """
    if name in OWN:
        documents = distinct_documents("test", name, count)  # type: ignore[arg-type]
        return [Question(d.prompt, partial(is_correct, d)) for d in documents]
    files = {"gsm8k": ("gsm8k_test.jsonl", _gsm8k), "mmlu": ("mmlu_dev.csv", _mmlu)}
    file, read = files[name]
    path = data_folder() / "prompts" / file
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; set CASCADE_DATA to the folder that has it")
    return read(path)[:count]


def final_number(text: str) -> float | None:
    """The last number of an answer; commas group digits."""
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def chosen_letter(text: str) -> str | None:
    """The option that an answer names: after its last "answer is", else the last letter A-D that
    stands alone."""
    if found := _CHOSEN.findall(text):
        return str(found[-1])
    letters = _LETTER.findall(text)
    return next(part for part in letters[-1] if part) if letters else None


def _gsm8k(path: Path) -> list[Question]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Question(
            f"Question: {row['question']}\nAnswer, reasoning step by step:",
            partial(_same_number, final_number(row["answer"])),
        )
        for row in rows
    ]


def _mmlu(path: Path) -> list[Question]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        options = " ".join(f"({letter}) {row[letter]}" for letter in "ABCD")
        prompt = f"Question: {row['question']}\n{options}\nAnswer, reasoning step by step:"
        found.append(Question(prompt, partial(_same_letter, row["answer"])))
    return found


def _same_number(expected: float | None, text: str) -> bool:
    return final_number(text) == expected


def _same_letter(expected: str, text: str) -> bool:
    return chosen_letter(text) == expected
