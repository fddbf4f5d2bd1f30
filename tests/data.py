"""Where tests find public models, tokenizers and texts; without them they skip, and say so."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

DEFAULT = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


def data_path(*parts: str) -> Path:
    """A file or folder of the data directory (CASCADE_DATA, else ../shared/data); skips the test
    where it is absent."""
    root = Path(os.environ.get("CASCADE_DATA") or DEFAULT)
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there; set CASCADE_DATA to the folder with the test data")
    return path


def prompts(limit: int) -> list[str]:
    """Real texts of many kinds: questions, exam items, conversations."""
    texts: list[str] = []
    for name, key in (("gsm8k_test.jsonl", "question"), ("gsm8k_train.jsonl", "answer")):
        lines = data_path("prompts", name).read_text(encoding="utf-8").splitlines()
        texts += [json.loads(line)[key] for line in lines[: limit // 4]]
    turns = data_path("prompts", "mt_bench_question.jsonl").read_text(encoding="utf-8")
    texts += [turn for line in turns.splitlines() for turn in json.loads(line)["turns"]]
    texts += data_path("prompts", "mmlu_dev.csv").read_text(encoding="utf-8").splitlines()
    return texts[:limit]
