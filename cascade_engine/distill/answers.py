"""What a target says to prompts, written down by the engine: a draft's training data."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cascade_engine.engine import Engine, Generation
from cascade_engine.params import SamplingParams
from cascade_engine.training.batches import Example, TopTokens

CHUNK = 4
"""Full batches between two writes."""


@dataclass(frozen=True)
class Answer:
    """One answer of the target. `held_out`: kept for judging, always greedy."""

    prompt: list[int]
    answer: list[int]
    held_out: bool
    top: list[TopTokens] = field(default_factory=list)

    def example(self) -> Example:
        return Example(self.prompt, self.answer, self.top)


@dataclass(frozen=True)
class Wanted:
    """What is asked of the target. Answers kept in a file are for the very same wishes.

    `samples` and `temperature` are for training prompts; of the held-out ones the greedy answer is
    wanted. `top`: most likely tokens to write down with each token.
    """

    prompts: list[list[int]]
    held_out: int
    """Of the prompts: the last ones."""
    max_new_tokens: int
    temperature: float
    samples: int
    top: int
    seed: int

    def requests(self) -> list[tuple[list[int], SamplingParams, bool]]:
        """Every prompt with its parameters, the held-out ones first."""
        split = len(self.prompts) - self.held_out
        greedy = SamplingParams(max_tokens=self.max_new_tokens)
        found = [(prompt, greedy, True) for prompt in self.prompts[split:]]
        for i in range(self.samples):
            for j, prompt in enumerate(self.prompts[:split]):
                params = SamplingParams(
                    max_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    seed=self.seed + i * split + j,
                    logprobs=self.top or None,
                )
                found.append((prompt, params, False))
        return found


def write_answers(
    engine: Engine,
    wanted: Wanted,
    path: Path,
    rows: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """All answers: those that `path` holds already, and the others as the engine gives them, `rows`
    at a time, written down chunk by chunk so that a stop loses little."""
    requests = wanted.requests()
    answers = read_answers(path)[: len(requests)]
    with path.open("a", encoding="utf-8") as file:
        while len(answers) < len(requests):
            progress(len(answers), len(requests))
            chunk = requests[len(answers) : len(answers) + CHUNK * rows]
            results = engine.generate([prompt for prompt, *_ in chunk], [p for _, p, _ in chunk])
            for (_, _, held_out), result in zip(chunk, results, strict=True):
                answers.append(_answer(result, held_out))
                file.write(json.dumps(asdict(answers[-1])) + "\n")
            file.flush()
    progress(len(answers), len(requests))
    return answers


def read_answers(path: Path) -> list[Answer]:
    """What a file of answers holds, up to a last line that a stop may have cut, which is dropped
    from the file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    return [Answer(**json.loads(line)) for line in lines]


def _answer(result: Generation, held_out: bool) -> Answer:
    top: Sequence[Any] = ()
    if result.logprobs is not None:
        top = [[(token, round(value, 4)) for token, value in each.top] for each in result.logprobs]
    return Answer(list(result.prompt_token_ids), result.token_ids, held_out, list(top))
