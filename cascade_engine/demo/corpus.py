"""The demo corpus: a seeded stream of documents (prompt, answer) for one split.

Every document is drawn anew from its generator; its split is the hash of its problem's identity, so
that a problem (the numbers of a word problem, the wording of a fact, an advice question) lies in one
split only.
`python -m cascade_engine.demo.corpus --split test --count 5` prints samples.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from . import formats
from .advice import make_advice
from .arithmetic import make_problem
from .world import make_fact

Split = Literal["train", "validation", "test"]
Task = Literal["arithmetic", "fact", "advice", "skeleton", "expansion"]
# Share of documents, not of tokens: advice answers are three times as long as a word problem.
TASK_SHARES: dict[Task, float] = {
    "arithmetic": 0.70,
    "fact": 0.13,
    "advice": 0.045,
    "skeleton": 0.075,
    "expansion": 0.05,
}


@dataclass(frozen=True)
class Document:
    """One training document or test item.

    `answer_number` is set for arithmetic, `points` (how many a list must have) for advice and
    skeletons.
    """

    task: Task
    identity: str
    prompt: str
    answer: str
    answer_number: int | None = None
    points: int | None = None

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def split_of(identity: str) -> Split:
    """Train 90%, validation 3%, test 7%, by a hash of the problem's identity."""
    share = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.90 else "validation" if share < 0.93 else "test"


def make_document(rng: random.Random, task: Task) -> Document:
    """One document of a task, from any split."""
    if task == "arithmetic":
        p = make_problem(rng)
        prompt = formats.question_prompt(p.question)
        return Document(task, p.identity, prompt, f" {p.solution}", answer_number=p.answer)
    if task == "fact":
        f = make_fact(rng)
        return Document(task, f.identity, formats.question_prompt(f.question), f" {f.answer}")
    a = make_advice(rng)
    count = len(a.points)
    if task == "advice":
        prompt = formats.question_prompt(a.question)
        return Document(task, a.identity, prompt, f" {a.answer}", points=count)
    if task == "skeleton":
        prompt, answer = formats.skeleton_prompt(a.question), formats.skeleton_text(a.skeleton)
        return Document(task, a.identity, prompt, answer, points=count)
    index = rng.randint(1, count)
    prompt = formats.expansion_prompt(a.question, a.skeleton, index)
    return Document(task, a.identity, prompt, f" {a.points[index - 1][1]}")


def documents(
    split: Split, seed: int, tasks: dict[Task, float] | None = None
) -> Iterator[Document]:
    """An endless stream of a split's documents; the same seed gives the same stream."""
    shares = TASK_SHARES if tasks is None else tasks
    rng = random.Random(f"{split}:{seed}")
    names, weights = list(shares), list(shares.values())
    while True:
        document = make_document(rng, rng.choices(names, weights)[0])
        if split_of(document.identity) == split:
            yield document


def distinct_documents(split: Split, task: Task, count: int, seed: int = 0) -> list[Document]:
    """`count` documents of one task with distinct prompts, for evaluation.

    Raises ValueError when the split has too few of them.
    """
    found: dict[str, Document] = {}
    for tried, document in enumerate(documents(split, seed, {task: 1.0})):
        found.setdefault(document.prompt, document)
        if len(found) == count:
            return list(found.values())
        if tried > 100 * count + 1000:
            raise ValueError(
                f"split {split} of {task} has only {len(found)} documents, not {count}"
            )
    raise AssertionError("documents() is endless")


def sample_prompts(split: Split, count: int) -> list[str]:
    """`count` prompts of a split, questions and skeleton requests in turn."""
    tasks: tuple[Task, ...] = ("arithmetic", "fact", "advice", "skeleton")
    per_task = -(-count // len(tasks))
    found = [distinct_documents(split, task, per_task) for task in tasks]
    return [d.prompt for group in zip(*found, strict=True) for d in group][:count]


def main() -> None:
    parser = argparse.ArgumentParser(description="print documents of the demo corpus")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="train")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bare", action="store_true", help="the texts alone, a blank line apart")
    args = parser.parse_args()
    stream = documents(args.split, args.seed)
    for _ in range(args.count):
        document = next(stream)
        if not args.bare:
            print(f"--- {document.task} ({document.identity})")
        print(document.text, end="\n\n" if args.bare else "\n")


if __name__ == "__main__":
    main()
