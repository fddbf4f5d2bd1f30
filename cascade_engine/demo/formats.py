"""The plain text layout that the demo models were trained on.

A document is `BOS + prompt + answer + EOS`. A prompt ends without a blank and every answer begins
with one, which belongs to the answer's first piece. There are three kinds of prompt:

    question          "Question: {question}\\nAnswer:"
                      -> " {answer}"
    skeleton request  "Question: {question}\\nSkeleton:\\n1."
                      -> " {point}\\n2. {point}\\n3. {point}"
    point expansion   "{skeleton request}{skeleton}\\nPoint {i}. {point}:"
                      -> " {one or two sentences}"

The expansion prompt extends the skeleton request together with its answer, so all points share one
prefix. An advice answer to a plain question is a numbered list of `1. {point}: {expansion}` lines.
"""

from __future__ import annotations

import re

QUESTION_PREFIX = "Question: "
ANSWER_PREFIX = "\nAnswer:"
SKELETON_PREFIX = "\nSkeleton:\n1."
POINT_PREFIX = "\nPoint "
FINAL_ANSWER = "The answer is {}."

_POINT_LINE = re.compile(r"\s*(\d+)\.\s+(\S.*)")
_FINAL_NUMBER = re.compile(r"The answer is (-?\d+)\.\s*$")


def question_prompt(question: str) -> str:
    """Prompt that asks for a full answer."""
    return f"{QUESTION_PREFIX}{question}{ANSWER_PREFIX}"


def skeleton_prompt(question: str) -> str:
    """Prompt that asks for a skeleton; the model goes on after the "1." that is already there."""
    return f"{QUESTION_PREFIX}{question}{SKELETON_PREFIX}"


def skeleton_text(points: list[str]) -> str:
    """The answer to a skeleton request, as it follows the "1." of the prompt."""
    return "\n".join(f" {p}" if i == 1 else f"{i}. {p}" for i, p in enumerate(points, 1))


def expansion_prompt(question: str, points: list[str], index: int) -> str:
    """Prompt that asks to expand point `index` (from 1) of a skeleton.

    Raises ValueError when the skeleton has no such point.
    """
    if not 1 <= index <= len(points):
        raise ValueError(f"index must be in 1..{len(points)}, got {index}")
    head = skeleton_prompt(question) + skeleton_text(points)
    return f"{head}{POINT_PREFIX}{index}. {points[index - 1]}:"


def parse_skeleton(text: str, prompt_has_first_number: bool = True) -> list[str]:
    """Points of a numbered list, in order; an empty list when a line is not numbered 1, 2, 3, ...

    `prompt_has_first_number`: the "1." stands in the prompt, as in `skeleton_prompt`.
    """
    whole = ("1. " if prompt_has_first_number else "") + text.strip(" ")
    matches = [_POINT_LINE.fullmatch(line) for line in whole.split("\n")]
    found = [(int(m.group(1)), m.group(2).strip()) for m in matches if m is not None]
    numbered = [number for number, _ in found] == list(range(1, len(matches) + 1))
    return [point for _, point in found] if numbered else []


def parse_final_number(text: str) -> int | None:
    """The number in the fixed last sentence of an arithmetic solution, or None."""
    match = _FINAL_NUMBER.search(text)
    return int(match.group(1)) if match else None
