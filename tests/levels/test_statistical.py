"""The statistical level's trees: rows kept up with, other levels' drafts as context."""

from __future__ import annotations

import pytest
import torch

from cascade_engine.levels import Proposal, StatisticalLevel, TokenRows
from cascade_engine.ops import CpuBackend


def level(learn_tokens: int = 0) -> StatisticalLevel:
    rows = TokenRows(3, 64)
    return StatisticalLevel(CpuBackend(1), rows, None, learn_tokens)


def write(found: StatisticalLevel, slot: int, tokens: list[int]) -> None:
    found._rows.write(slot, tokens)


def test_trees_of_several_rows() -> None:
    found = level()
    texts = {0: [1, 2, 3, 1, 2, 4, 1, 2], 2: [5, 6, 7, 5, 6]}
    for slot, text in texts.items():
        write(found, slot, text)
        found.begin(slot, text)
    before = found._rows.tokens.clone()
    second, first = found.propose_trees([Proposal(2, 5, 2), Proposal(0, 8, 16)])
    assert second.tokens.tolist() == [7, 5]
    assert second.parents.tolist() == [-1, 0]
    roots = first.tokens[first.parents == -1].tolist()
    assert roots[:2] == [4, 3]  # the later one first
    assert (first.probs[1:] <= first.probs[0]).all()
    assert torch.equal(found._rows.tokens, before)


def test_drafts_of_other_levels_are_context_only() -> None:
    found = level()
    text = [1, 2, 3, 4, 9]
    write(found, 1, [*text, 1, 2])  # 1 2 drafted by another level
    found.begin(1, text)
    (tree,) = found.propose_trees([Proposal(1, 7, 2)])
    assert tree.tokens.tolist() == [3, 4]
    write(found, 1, [*text, 8, 3])  # and rejected
    (tree,) = found.propose_trees([Proposal(1, 7, 1)])
    assert tree.tokens.tolist() == [4]


def test_chains_gates_and_predictions() -> None:
    found = level()
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    write(found, 0, text)
    found.begin(0, text)
    (chain,) = found.propose_trees([Proposal(0, 8, 5)], chain=True)
    assert chain.parents.tolist() == [-1, 0, 1, 2, 3]
    (few,) = found.propose_trees([Proposal(0, 8, 60)], least=0.03)
    (shallow,) = found.propose_trees([Proposal(0, 8, 60)], depth=1)
    assert 0 < len(few.tokens) < 60
    assert (few.probs > 0.03).all()
    assert set(shallow.parents.tolist()) == {-1}
    prediction = torch.tensor([9, 1, 2, 7, 8, 6], dtype=torch.int32)
    (tree,) = found.propose_trees([Proposal(0, 8, 3, prediction)])
    assert tree.tokens.tolist() == [7, 8, 6]


def test_learning() -> None:
    silent, learning = level(), level(100)
    for found in (silent, learning):
        write(found, 0, [1, 2, 3, 4])
        found.begin(0, [1, 2], 2)
        found.extend(0, [3, 4])
        found.finish(0)
        write(found, 1, [7, 2, 3])
        found.begin(1, [7, 2, 3])
    assert (silent.learned, learning.learned) == (0, 5)
    assert len(silent.propose_trees([Proposal(1, 3, 4)])[0].tokens) == 0
    assert learning.propose_trees([Proposal(1, 3, 4)])[0].tokens.tolist() == [4]
    learning.clear_learned()
    assert len(learning.propose_trees([Proposal(1, 3, 4)])[0].tokens) == 0


def test_a_slot_is_checked() -> None:
    with pytest.raises(ValueError, match=r"row must be in 0\.\.2, got 3"):
        level().begin(3, [1])
