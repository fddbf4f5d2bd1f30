"""Choice and acceptance as a review launches them, for the tests of what they give."""

from __future__ import annotations

import dataclasses

import torch

from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import Rows
from tests.ops.native import mask_words
from tests.ops.test_accept import Case
from tests.reference.sampling import Params

NO_NUMBER, NO_ALLOWED = -1, -2


@dataclasses.dataclass
class Outcome:
    num_accepted: list[int]
    own: list[int]
    lengths: list[int]
    paths: list[list[int]]
    tokens: torch.Tensor
    probs: torch.Tensor | None
    kept: torch.Tensor | None


def review(
    run: Launcher,
    rows: Rows,
    wanted: list[int],
    logits: torch.Tensor,
    params: list[Params],
    probs: torch.Tensor | None = None,
    lenience: float = 1.0,
    allowed: torch.Tensor | None = None,
) -> Outcome:
    """choose and accept; `logits` `[rows, logit width, vocab]` of any stride."""
    number, width, vocab = logits.shape
    device = run.device
    samplers = DeviceSamplers(run, [dataclasses.asdict(p) for p in params], vocab)
    logits = logits.to(device)
    best = torch.zeros(number * width, dtype=torch.int64, device=device)
    edits = samplers.edits or allowed is not None
    # As much as ChooseArgs says, and a row behind that nobody may touch.
    processed = torch.full((number * width + 1, vocab), torch.nan, device=device)
    seen = torch.zeros(number * width + 1, vocab, dtype=torch.int32, device=device)
    seen[-1] = 1 << 20
    chosen = torch.full((number * width, 2), torch.nan, device=device)
    shared = {
        "batch": rows.batch,
        "wanted": torch.tensor(wanted, dtype=torch.int32, device=device),
        "logit_width": width,
        "best": best,
        "probs": None if probs is None else chosen,
    }
    run(
        "choose",
        logits=logits,
        logits_stride=logits.stride(1),
        vocab=vocab,
        allowed=None if allowed is None else allowed.to(device),
        edits=edits,
        filters=samplers.filters or probs is not None,
        processed=processed if edits else None,
        seen=seen if edits else None,
        distributions=None,
        **samplers.arguments(),
        **shared,
    )
    assert not seen[:-1].any()
    assert (seen[-1] == 1 << 20).all()
    assert processed[-1].isnan().all()
    probs = None if probs is None else probs.clone().to(device)
    trees = rows.trees is not None
    num_accepted, own, lengths, path_lengths = torch.full((4, number), -9, dtype=torch.int32).to(
        device
    )
    paths = torch.full((number, 64), -9, dtype=torch.int32, device=device)
    kept = None if probs is None else torch.full((number, width), -1.0, device=device)
    run(
        "accept",
        tokens=rows.tokens,
        draft_probs=probs,
        lenience=lenience,
        num_accepted=num_accepted,
        own=own,
        lengths=lengths,
        paths=paths if trees else None,
        path_lengths=path_lengths if trees else None,
        kept_probs=kept,
        kept_stride=width,
        samplers=None,
        **shared,
    )
    assert not best.any()
    found = [p[:n].tolist() for p, n in zip(paths.cpu(), path_lengths.tolist(), strict=True)]
    return Outcome(
        num_accepted.tolist(),
        own.tolist(),
        lengths.tolist(),
        found,
        rows.tokens.cpu(),
        None if probs is None else probs.cpu(),
        None if kept is None else kept.cpu(),
    )


def review_case(run: Launcher, case: Case, lenience: float, probs: bool) -> Outcome:
    number, width = (
        len(case.order),
        1 + max(n - f for f, n in zip(case.frontiers, case.lengths, strict=True)),
    )
    vocab = case.rows.logits.shape[1]
    logits = torch.full((number, width, vocab + 3), torch.nan)[:, :, :vocab]
    masks = [[[True] * vocab] * width for _ in range(number)]
    wanted = [n - f + 1 for f, n in zip(case.frontiers, case.lengths, strict=True)]
    for i, count in enumerate(wanted):
        logits[i, :count] = torch.tensor(case.logits_of(i))
        if case.allowed[i] is not None:
            masks[i][:count] = case.allowed[i]
    allowed = None
    if any(a is not None for a in case.allowed):
        allowed = mask_words([m for rows in masks for m in rows]).view(torch.int32)
    # A token that lags behind is fed with the review.
    starts = [max(0, f - 2) for f in case.frontiers]
    counts = [n - s for s, n in zip(starts, case.lengths, strict=True)]
    rows = Rows(run, starts, counts, slots=case.order, tokens=case.rows.tokens.clone())
    given = case.rows.probs if probs else None
    return review(run, rows, wanted, logits, case.params, given, lenience, allowed)
