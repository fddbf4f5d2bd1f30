"""What CS Drafting (Chen et al., arXiv 2312.11462) published, and its standardized walltime
improvement (SWI).

SWI replaces time by counting: each pass of a model costs a fixed price, whatever the machine and
however many tokens it reviews, and proposals of the statistical level cost nothing. It is the cost
of plain decoding over that of the cascade.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PREVIOUS_WORK = {"xxl": 1.0, "large": 0.11, "base": 0.04, "small": 0.02}
"""Time of a pass over one of T5-XXL, by size of T5 (Leviathan et al., arXiv 2211.17192), as the
paper takes it over ("PW")."""


class Published(NamedTuple):
    """Both SWI by model size."""

    target: str
    data: str
    cascade: float
    speculative: float
    note: str = ""


PAPER = (
    Published("FLAN-T5-XXL", "MMLU", 4.88, 3.97, "by another account 4.12"),
    Published("FLAN-T5-XXL", "GSM8K", 3.88, 3.38),
    Published("LLaMA-2-7B", "MMLU", 2.64, 2.12),
    Published("LLaMA-2-7B", "GSM8K", 2.86, 2.48),
)

COMPARABLE = (
    "Comparable: the count. A pass of a model is one call here as there, a table's proposal is "
    "free, and a review costs one pass however long it is, so SWI does not depend on the machine.",
    "Comparable: the order of the modes on one set of models.",
    "Not comparable: acceptance. The embedded models are small and know the texts they are asked "
    "for, and each target has drafts trained on the same texts; the papers' models answer open "
    "questions. Only --target with the papers' checkpoints gives the papers' rows.",
    "Not comparable: the sizes. The papers' drafts have 0.5% to 2.3% of their target's "
    "parameters, the embedded ones 4% to 20%, so a draft's pass weighs more here.",
    "Not comparable: the table. The papers fill up from a bigram table, here contexts have up to "
    "four tokens (bench.ablations has the bigram).",
    "Not comparable: LLaMA by model size. The authors' code weighs the 7B target with 70000 and "
    "its 160M draft with 160, a tenth of the draft's true share; here sizes are the parameters.",
    "Not comparable: SWI and time. A review of many tokens takes longer than a step wherever "
    "arithmetic or the caches are the limit; the column 'x plain' is what the clock says.",
)


def size_costs(parameters: Sequence[int]) -> list[float]:
    """Prices by model size ("MS"): parameters over the target's; 0 for the statistical level."""
    return [*(count / parameters[0] for count in parameters), 0.0]


def previous_work_costs(names: Sequence[str]) -> list[float]:
    """Prices by PREVIOUS_WORK where names say which T5 a model is; else by place: the first draft
    counts as base, further ones as small."""
    sizes = [next((size for size in PREVIOUS_WORK if size in name), None) for name in names]
    if sizes[0] != "xxl" or not all("t5" in name for name in names):
        sizes = ["xxl", *("base" if i == 0 else "small" for i in range(len(names) - 1))]
    return [*(PREVIOUS_WORK[size or "small"] for size in sizes), 0.0]


def swi(plain_calls: int, calls: Sequence[int], costs: Sequence[float]) -> float:
    """Cost of `plain_calls` passes of the target over that of each level's `calls`."""
    return plain_calls * costs[0] / sum(n * c for n, c in zip(calls, costs, strict=True))
