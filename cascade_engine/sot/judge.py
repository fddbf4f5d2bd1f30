"""Which of two answers is better, as a model sees it (the paper's evaluation, section 3.2).

Both orders are asked, so that a judge that prefers the first answer decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cascade_engine.errors import RequestError
from cascade_engine.sot.client import Endpoint
from cascade_engine.sot.prompts import FOLDER, fill, read_prompt

JUDGE_FOLDER = FOLDER / "judge"
GENERAL = "general"
ASPECTS = ("coherence", "depth", "diversity", "immersion", "integrity", "relevance")
Verdict = Literal["win", "tie", "loss"]
_LAST_LINE = re.compile(r"VERDICT:\s*\**\s*(1|2|TIE)\b", re.IGNORECASE)


class Pair(NamedTuple):
    """A question with the answer that is judged and the one it is held against."""

    question: str
    answer: str
    against: str


@dataclass(frozen=True)
class Judgement:
    """Of one pair; `verdict` is None where the judge did not give one in both orders."""

    verdict: Verdict | None
    orders: tuple[str | None, str | None]
    """ "1", "2" or "TIE" as said with the answer first, and with it second."""
    error: str | None = None


class Judge:
    """Asks an endpoint. `folder` holds a prompt file for each aspect, with {question}, {first} and
    {second}, that ends in "VERDICT: 1", "VERDICT: 2" or "VERDICT: TIE"."""

    def __init__(
        self, endpoint: Endpoint, folder: str | Path = JUDGE_FOLDER, max_tokens: int = 512
    ) -> None:
        self._endpoint = endpoint
        self._folder = Path(folder)
        self._max_tokens = max_tokens

    def compare(self, pairs: Sequence[Pair], aspect: str = GENERAL) -> list[Judgement]:
        """Judges pairs in parallel, each in both orders. Raises RequestError for an aspect without
        a prompt."""
        path = self._folder / f"{aspect}.txt"
        if not path.is_file():
            raise RequestError(f"{self._folder} has no {aspect}.txt")
        template = read_prompt(path)
        for place in ("question", "first", "second"):
            if f"{{{place}}}" not in template:
                raise RequestError(f"{path} has no place {{{place}}}")
        asked = [
            fill(template, {"question": pair.question, "first": first, "second": second})
            for pair in pairs
            for first, second in ((pair.answer, pair.against), (pair.against, pair.answer))
        ]
        with ThreadPoolExecutor(self._endpoint.options.concurrency) as pool:
            said = list(pool.map(self._ask, asked))
        return [_judged(said[i], said[i + 1]) for i in range(0, len(said), 2)]

    def _ask(self, prompt: str) -> tuple[str | None, str | None]:
        """What the judge says last, and why it says nothing."""
        outcome = self._endpoint.complete(
            [{"role": "user", "content": prompt}], max_tokens=self._max_tokens, temperature=0.0
        )
        if outcome.error is not None:
            return None, outcome.error
        found = _LAST_LINE.findall(outcome.text)
        if not found:
            return None, f"the judge gave no verdict: {outcome.text[-80:]!r}"
        return found[-1].upper(), None


def _judged(
    straight: tuple[str | None, str | None], swapped: tuple[str | None, str | None]
) -> Judgement:
    orders = straight[0], swapped[0]
    if straight[0] is None or swapped[0] is None:
        return Judgement(None, orders, straight[1] or swapped[1])
    points = {"1": 1, "TIE": 0, "2": -1}
    total = points[straight[0]] - points[swapped[0]]
    return Judgement("win" if total > 0 else "loss" if total < 0 else "tie", orders)


def net_win_rate(judgements: Sequence[Judgement]) -> dict[str, float]:
    """(wins - losses) / judged pairs, with the counts."""
    verdicts = [j.verdict for j in judgements if j.verdict is not None]
    counts = {name: verdicts.count(name) for name in ("win", "tie", "loss")}
    total = len(verdicts)
    return {
        "net_win_rate": (counts["win"] - counts["loss"]) / total if total else 0.0,
        **counts,
        "not_judged": len(judgements) - total,
    }
