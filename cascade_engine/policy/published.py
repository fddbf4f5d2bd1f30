"""Settings that were published with a paper, by name.

CS Drafting (Chen et al., arXiv 2312.11462): the configurations in the README of the authors'
repository, github.com/lfsszd/CS-Drafting at commit 05b22e1. Their k_matrix holds increments, as
FixedCascade's does (the paper's k_12 is the sum of the first two). The statistical level is
Max-Gram with a bigram table, 10 tokens a draft. For GSM8K they keep the setting and change the data
set.
"""

from __future__ import annotations

from cascade_engine.errors import RequestError
from cascade_engine.policy.fixed import FixedCascade

FLAN_T5 = "FLAN-T5 XXL with drafts base and small"

PUBLISHED: dict[str, tuple[FixedCascade, str]] = {
    "flan-t5-model-size": (
        FixedCascade([[5, 14, 10], [0, 1, 10], [0, 0, 10]], lenience=2.0),
        f"CS Drafting, MMLU, {FLAN_T5}, passes weighed by model size",
    ),
    "flan-t5-previous-work": (
        FixedCascade([[5, 8, 10], [0, 1, 10], [0, 0, 10]], lenience=5.0),
        f"CS Drafting, MMLU, {FLAN_T5}, passes weighed as in previous work",
    ),
    "llama-7b-model-size": (
        FixedCascade([[13, 10], [0, 10]], lenience=3.0),
        "CS Drafting, MMLU, LLaMA-7B with a draft of 160M, passes weighed by model size",
    ),
}
"""By name: the setting, and what it was published for."""


def published(name: str) -> FixedCascade:
    """A published setting; raises RequestError for a name that is none."""
    if name not in PUBLISHED:
        raise RequestError(f"preset must be one of {', '.join(PUBLISHED)}, got {name!r}")
    return PUBLISHED[name][0]
