"""Recorded reviews decide as native ones do: random distributions, drafts, trees and lenience."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from cascade_engine.levels import ReviewItem, TokenRows, TokenTree, Verdict
from cascade_engine.ops import CpuBackend
from cascade_engine.params import SamplingParams
from cascade_engine.sampling import make_sampler
from cascade_engine.tune.levels import RecordedLevel
from cascade_engine.tune.recording import Choices, Recordings
from tests.tune.support import loaded

VOCAB, PROMPT, SIBLINGS = 10, [1, 2, 3], 2


class Random:
    """A draft with a distribution of its own behind every text."""

    context = 64

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def logits(self, tokens: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, *tokens)) % 2**31)
        return torch.randn(VOCAB, generator=generator) * 1.5

    def choices(self, tokens: list[int], wanted: int) -> list[Choices]:
        found = []
        for end in range(len(tokens) - wanted + 1, len(tokens) + 1):
            probs = self.logits(tokens[:end]).softmax(-1).topk(VOCAB)
            found.append(Choices(probs.indices.tolist(), probs.values.tolist()))
        return found


def random_tree(rng: random.Random) -> TokenTree:
    tokens: list[int] = []
    parents: list[int] = []
    for node in range(rng.randint(1, 14)):
        parent = rng.randint(-1, node - 1)
        free = set(range(VOCAB)) - {t for t, p in zip(tokens, parents, strict=True) if p == parent}
        tokens.append(rng.choice(sorted(free)))
        parents.append(parent)
    return TokenTree(tokens, parents, [rng.random() for _ in tokens], [2] * len(tokens))


class Case:
    """A row of PROMPT and two tokens with a random draft behind it, a chain or a tree."""

    def __init__(self, seed: int, kind: str) -> None:
        rng, self.model = random.Random(seed), Random(seed)
        self.answer = [rng.randrange(VOCAB) for _ in range(6)]
        self.text = PROMPT + self.answer[:2]
        self.drafted = [rng.randrange(VOCAB) for _ in range(rng.randint(0, 6))]
        if rng.random() < 0.7:  # something that the level may like
            liked = self.model.choices(self.text, 1)[0].tokens
            self.drafted[:1] = [liked[rng.choice((0, 1))]]
        self.vouched = [rng.random() for _ in self.drafted]
        self.tree = random_tree(rng) if kind == "tree" else None
        self.sampler = make_sampler(SamplingParams(), 0, 0, len(PROMPT), [], 0)

    def rows(self) -> TokenRows:
        rows = TokenRows(1, 64)
        rows.write(0, self.text + self.drafted)
        rows.append(0, len(self.text), self.drafted, self.vouched)
        return rows

    def paths(self) -> list[list[int]]:
        """What stands before each logit row, behind the text."""
        if self.tree is None:
            return [self.drafted[:i] for i in range(len(self.drafted) + 1)]
        paths: list[list[int]] = [[]]
        for token, parent in zip(self.tree.tokens, self.tree.parents, strict=True):
            paths.append([*paths[parent + 1], token])
        return paths

    def recorded(self, rows: TokenRows, lenience: float) -> Verdict:
        recordings = Recordings([PROMPT], [self.answer], [])
        recordings.models = [self.model]  # type: ignore[list-item]
        recordings.of_row(PROMPT)._choices.append({})
        level = RecordedLevel(loaded(1).neural[1], 1, rows, recordings)
        length = len(self.text) + (0 if self.tree else len(self.drafted))
        item = ReviewItem(
            0, len(self.text), length, self.sampler, tree=self.tree, siblings=SIBLINGS
        )
        return level.review([item], lenience)[0]

    def native(self, rows: TokenRows, lenience: float) -> Any:
        """(accepted, own token, path), and the runners-up."""
        backend, paths, tree, begin = CpuBackend(1), self.paths(), self.tree, len(self.text)
        logits = torch.stack([self.model.logits(self.text + path) for path in paths])
        where = {
            "logits": logits.data_ptr(), "logits_stride": VOCAB, "vocab": VOCAB,
            "tokens": rows.tokens.data_ptr(), "token_stride": rows.tokens.shape[1],
            "rows": [0], "samplers": [self.sampler], "allowed": [],
        }  # fmt: skip
        (verdict,) = backend.accept(
            **where, logit_rows=len(paths), probs=rows.draft_probs.data_ptr(), frontiers=[begin],
            lengths=[begin + len(paths) - 1], lenience=lenience,
            trees=[] if tree is None else [(tree.tokens, tree.parents, tree.probs)],
        )  # fmt: skip
        accepted, _, path = verdict
        offsets = list(range(accepted + 1)) if tree is None else [0, *(1 + n for n in path)]
        (siblings,) = backend.siblings(
            **where, first_logit_rows=[0], starts=[begin], counts=[accepted + 1],
            siblings=[SIBLINGS], paths=[offsets],
        )  # fmt: skip
        return verdict, siblings


@pytest.mark.parametrize("lenience", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_reviews_are_those_of_native_code(lenience: float, kind: str) -> None:
    kept = 0
    for seed in range(40):
        case = Case(seed, kind)
        rows, expected_rows = case.rows(), case.rows()
        found = case.recorded(rows, lenience)
        (accepted, own, path), siblings = case.native(expected_rows, lenience)
        assert (found.num_accepted, found.token, list(found.path)) == (accepted, own, path)
        begin, end = len(case.text), len(case.text) + accepted + 1
        assert rows.read(0, 0, end) == expected_rows.read(0, 0, end)
        probs = expected_rows.read_probs(0, begin, end)
        assert rows.read_probs(0, begin, end) == pytest.approx(probs, rel=1e-5)
        tokens = [
            [[token for token, _ in pairs] for pairs in s] for s in (found.siblings, siblings)
        ]
        assert tokens[0] == tokens[1]
        kept += accepted
    assert kept > 5


def test_a_lenient_level_keeps_the_likeliest_of_siblings_that_pass() -> None:
    for seed in range(10):
        case = Case(seed, "tree")
        liked = case.model.choices(case.text, 1)[0].tokens
        case.tree = TokenTree([liked[2], liked[1]], [-1, -1], [1e-4, 1e-4], [2, 2])
        found = case.recorded(case.rows(), 3.0)
        (_, own, path), _ = case.native(case.rows(), 3.0)
        assert list(found.path) == path == [1]
        assert found.token == own
