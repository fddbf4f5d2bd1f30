"""The rejection rule on the device against the oracle of the CPU's tests, decision by decision."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import Rows
from tests.ops.native import mask_words
from tests.ops.test_rejection import CLEAR, Case, expected, native, random_case
from tests.reference.sampling import Params

CAPACITY = 128
STALE = -7.0


@dataclasses.dataclass
class Outcome:
    accepted: list[int]
    own: list[int]
    lengths: list[int]
    paths: list[list[int]]
    tokens: torch.Tensor
    probs: torch.Tensor
    gained: torch.Tensor
    kept: torch.Tensor
    """`[rows, width, vocab]`, STALE where nothing was kept."""


def review(run: Launcher, cases: list[Case], lenience: float, trees: bool = True) -> Outcome:
    """choose, accept and rejection, each with all that ChooseArgs and RejectionArgs ask for."""
    device, number, vocab = run.device, len(cases), cases[0].logits.shape[1]
    nodes = [len(case.tokens) for case in cases]
    width = max(nodes) + 1
    size = number * width
    tokens = torch.full((number, CAPACITY), -7, dtype=torch.int32)
    logits = torch.full((number, width, vocab), torch.nan)
    masks = [[[True] * vocab] * width for _ in cases]
    drawn, drawn_at = torch.zeros(number, width, vocab), torch.zeros(size, dtype=torch.int64)
    kept, kept_at = torch.full((number, width, vocab), STALE), torch.zeros(size, dtype=torch.int64)
    drawn, kept = drawn.to(device), kept.to(device)
    for i, case in enumerate(cases):
        row = [*case.prefix, *case.tokens]
        tokens[i, : len(row)] = torch.tensor(row)
        logits[i, : nodes[i] + 1] = case.logits
        masks[i][: nodes[i] + 1] = case.allowed or masks[i][: nodes[i] + 1]
        for j, draft in enumerate(case.drafts):
            if draft is not None:
                drawn[i, j] = torch.tensor(draft).to(device)
                drawn_at[i * width + j] = drawn[i, j].data_ptr()
                if j % 2:  # kept where it was
                    kept[i, j] = drawn[i, j]
                    drawn_at[i * width + j] = kept[i, j].data_ptr()
        if case.keeps:
            kept_at[i * width : (i + 1) * width] = torch.tensor(
                [kept[i, j].data_ptr() for j in range(width)]
            )
    starts = [len(case.prefix) - 1 for case in cases]
    counts = [n + 1 for n in nodes]
    parents = [None if case.is_chain else case.parents for case in cases]
    batch = Rows(
        run, starts, counts, parents if trees else None, width=width, capacity=CAPACITY,
        tokens=tokens,
    )  # fmt: skip
    params = [{**dataclasses.asdict(case.params), "rejection": True} for case in cases]
    samplers = DeviceSamplers(run, params, vocab)
    allowed = None
    if any(case.allowed for case in cases):
        allowed = mask_words([m for part in masks for m in part]).view(torch.int32).to(device)
    edits = samplers.edits or allowed is not None
    shared = {
        "batch": batch.batch,
        "wanted": torch.tensor(counts, dtype=torch.int32, device=device),
        "logit_width": width,
        "best": torch.zeros(size, dtype=torch.int64, device=device),
        "probs": None,
    }
    chosen = {
        "logits": logits.to(device),
        "logits_stride": vocab,
        "vocab": vocab,
        "allowed": allowed,
        "edits": edits,
        "filters": True,
        "processed": torch.zeros(size, vocab, device=device) if edits else None,
        "seen": torch.zeros(size, vocab, dtype=torch.int32, device=device) if edits else None,
        "distributions": torch.full((size, 3), -9, dtype=torch.int64, device=device),
        **samplers.arguments(),
        **shared,
    }
    out = torch.full((4, number), -9, dtype=torch.int32, device=device)
    paths = torch.full((number, 64), -9, dtype=torch.int32, device=device)
    probs = torch.full((number, CAPACITY), STALE, device=device)
    gained = torch.full((number, width), STALE, device=device)
    accepted = {
        "tokens": batch.tokens,
        "draft_probs": probs,
        "lenience": lenience,
        "num_accepted": out[0],
        "own": out[1],
        "lengths": out[2],
        "paths": paths if trees else None,
        "path_lengths": out[3] if trees else None,
        "kept_probs": gained,
        "kept_stride": width,
        "samplers": samplers.memory,
        **shared,
        "probs": torch.zeros(size, 2, device=device),
    }
    run("choose", **chosen)
    run("accept", **accepted)
    assert (out == -9).all()
    run(
        "rejection",
        chosen,
        accepted,
        numbers=torch.tensor([c.number for c in cases], dtype=torch.int32, device=device),
        drawn=drawn_at.to(device),
        kept=kept_at.to(device),
        rests=torch.full((size, 2), -9, dtype=torch.int64, device=device),
        judged=torch.full((size, 3), -9, dtype=torch.int32, device=device),
    )
    assert not shared["best"].any()
    found = [p[: max(n, 0)].tolist() for p, n in zip(paths.cpu(), out[3].tolist(), strict=True)]
    numbers = (part.tolist() for part in out[:3])
    memory = (batch.tokens, probs, gained, kept)
    return Outcome(*numbers, found, *(part.cpu() for part in memory))


@pytest.mark.parametrize("lenience", [1.0, 2.5])
def test_reviews_are_the_oracles(run: Launcher, lenience: float) -> None:
    """Chains and trees, drawn drafts and certain ones, with processors, masks and filters. Breaks
    with another uniform, residual, order of siblings or distribution kept."""
    unclear = accepted = drawn = 0
    for seed in range(36):
        rng = random.Random(seed)
        vocab = rng.choice([12, 45, 301])
        chains = seed % 2 == 0
        cases = [random_case(rng, vocab, rng.choice([0, 1, 4, 9]), chains) for _ in range(3)]
        got = review(run, cases, lenience, trees=seed % 4 != 0)
        cpu, rows, _ = native(cases, vocab, "", lenience)
        for i, case in enumerate(cases):
            path, own, kept, margin = expected(case, lenience)
            if margin < CLEAR:
                unclear += 1
                continue
            begin, n = len(case.prefix), len(path)
            row = [*case.prefix, *(case.tokens[node] for node in path), own]
            assert (got.accepted[i], got.own[i], got.lengths[i]) == (n, own, len(row)), (seed, i)
            assert got.tokens[i, : len(row)].tolist() == row
            assert (cpu[i][0], cpu[i][1]) == (n, own)
            if seed % 4:
                assert got.paths[i] == path
            laws = torch.tensor(kept)
            ours = got.probs[i, begin : len(row)]
            wanted = laws[torch.arange(n + 1), row[begin:]].float()
            torch.testing.assert_close(ours, wanted, rtol=0, atol=2e-6)
            assert torch.equal(ours, got.gained[i, : n + 1])
            torch.testing.assert_close(ours, rows.probs[i, begin : len(row)], rtol=1e-5, atol=1e-7)
            if case.keeps:
                torch.testing.assert_close(got.kept[i, : n + 1], laws.float(), rtol=0, atol=2e-6)
            accepted += n
            drawn += any(draft is not None for draft in case.drafts)
    assert unclear < 15
    assert accepted > 45
    assert drawn > 30


def test_own_tokens_are_a_sample(run: Launcher) -> None:
    """Certain drafts: what two rejected siblings leave is drawn from in proportion."""
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.5]]).expand(3, 5).contiguous()
    counts = torch.zeros(5)
    for start in range(0, 1600, 100):
        cases = [
            Case([1], [3, 0], [-1, -1], [None] * 2, 0, Params(seed=5), logits, None, False, n)
            for n in range(start, start + 100)
        ]
        got = review(run, cases, 1.0)
        for row, length in zip(got.tokens, got.lengths, strict=True):
            assert length == 2 + (int(row[1]) in (0, 3))
            counts[row[1]] += 1
    wanted = logits[0].softmax(-1) * 1600
    assert ((counts - wanted) ** 2 / wanted).sum() < 23


def test_borders(run: Launcher) -> None:
    """A draft that the level is sure of stays; one past its vocabulary or that it excludes goes; a
    draft of the level's own distribution leaves nothing and stays; a token tried twice has no
    second chance; equal tokens at the cut of top_k go to the lowest ids."""
    sure = torch.full((3, 70), -torch.inf)
    sure[:, 66] = 0.0
    law = torch.tensor([[1.0, 2.0, 0.0, 3.0] * 17 + [0.0] * 2] * 2)
    own = law[0].softmax(-1)
    for number in range(8):

        def case(tokens: list[int], drafts: list, logits: torch.Tensor, **params: float) -> Case:
            parents = list(range(-1, len(tokens) - 1))
            p = Params(seed=3, **params)  # type: ignore[arg-type]
            return Case(
                [1], tokens, parents, drafts, len(tokens), p, logits, None, False, number  # noqa: B023
            )  # fmt: skip

        same = case([3], [own.tolist()], law)
        siblings = case([5, 5], [None, None], law[:1].expand(3, 70))
        siblings.parents, siblings.trunk = [-1, -1], 0
        ties = case([], [], torch.tensor([[0.0] * 3 + [4.0] * 67]), top_k=2)
        for trees in (False, True):
            cases = [
                case([66, 66], [None, None], sure),
                case([69, 2], [None, None], sure),
                case([75], [None], law),
                same,
                ties,
            ]
            got = review(run, [*cases, siblings] if trees else cases, 1.0, trees)
            assert got.accepted[:4] == [2, 0, 0, 1]
            assert got.own[:2] == [66, 66]
            assert got.own[4] in (3, 4)
            if trees:
                assert got.accepted[5] == (1 if got.paths[5] else 0)
                assert got.paths[5] in ([], [0])
                assert got.own[5] != 5 or got.paths[5]


def test_logits_that_are_no_numbers(run: Launcher) -> None:
    """The reason stands for the token, where the walk comes to it."""
    nan, inf = float("nan"), float("inf")
    broken = torch.full((2, 40), nan)
    excluded = torch.full((2, 40), -inf)
    behind = torch.stack([torch.eye(40)[7] * 100, torch.full((40,), nan)])
    partly = torch.full((2, 40), nan)
    partly[:, :3] = 0.0
    cases = [
        Case([1], [7], [-1], [None], 1, Params(seed=1), logits, None, False, 0)
        for logits in (broken, excluded, behind, partly)
    ]
    for trunk in (1, 0):
        for case in cases:
            case.trunk = trunk
        got = review(run, cases, 1.0)
        assert got.own[:3] == [-1, -2, -1]
        assert got.accepted[:3] == [0, 0, 1]
        assert 0 <= got.own[3] < 3


def test_a_large_vocabulary_is_shared_out(run: Launcher) -> None:
    """Parts within parts; what is kept is written by several blocks."""
    unclear = 0
    for seed in range(6):
        rng = random.Random(seed)
        cases = [random_case(rng, 2500, 2, chain) for chain in (True, False)]
        cases = [dataclasses.replace(case, params=Params(seed=seed), keeps=True) for case in cases]
        got = review(run, cases, 1.0)
        for i, case in enumerate(cases):
            path, own, kept, margin = expected(case, 1.0)
            if margin < CLEAR / 10:
                unclear += 1
                continue
            assert (got.paths[i], got.own[i]) == (path, own)
            laws = torch.tensor(kept).float()
            torch.testing.assert_close(got.kept[i, : len(laws)], laws, rtol=0, atol=2e-6)
    assert unclear < 4


def test_long_chains(run: Launcher) -> None:
    """The reach of drafts behind others that are more probable than they were drafted."""
    for seed in range(20):
        rng = random.Random(seed)
        cases = [random_case(rng, 12, 9, True) for _ in range(3)]
        got = review(run, cases, 1.0)
        for i, case in enumerate(cases):
            path, own, _, margin = expected(case, 1.0)
            assert margin < CLEAR or (got.accepted[i], got.own[i]) == (len(path), own)
