"""Published settings: what was published, and that it can be asked for."""

from __future__ import annotations

import pytest

from cascade_engine.errors import RequestError
from cascade_engine.policy import PUBLISHED, FixedCascade, published


def test_the_settings_are_those_of_the_authors() -> None:
    """Breaks when a number is mistyped: the total drafted behind the target's frontier is 29, 23
    and 23 tokens, the statistical level drafts 10 at a time."""
    totals = {name: sum(policy.k_matrix[0]) for name, (policy, _) in PUBLISHED.items()}
    assert totals == {
        "flan-t5-model-size": 29,
        "flan-t5-previous-work": 23,
        "llama-7b-model-size": 23,
    }
    assert published("flan-t5-model-size") == FixedCascade(
        [[5, 14, 10], [0, 1, 10], [0, 0, 10]], lenience=2
    )
    assert [policy.lenience for policy, _ in PUBLISHED.values()] == [2, 5, 3]
    assert all(policy.k_matrix[-1][-1] == 10 for policy, _ in PUBLISHED.values())


def test_another_name_is_refused() -> None:
    with pytest.raises(RequestError, match=r"preset must be one of flan-t5-model-size, .*got 'x'"):
        published("x")
