"""Runners-up on a GPU: the tokens that a sampler would choose next beside the one it chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bench.cuda_batch import START, batch_of, choosing, shared_arguments
from bench.op_case import Case, Size
from bench.shapes import vocabulary_of
from cascade_engine.ops import Sampler
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher

COUNT = 4
"""The token itself and three more."""


def runners_up_cases(run: Launcher, shape: str, sizes: Sequence[Size]) -> Iterator[Case]:
    """Of greedy rows: choosing, and finding what was next. torch: topk of their probabilities."""
    for rows, _ in sizes:
        yield _case(run, vocabulary_of(shape), rows)


def _case(run: Launcher, vocab: int, rows: int) -> Case:
    batch = batch_of(run, rows, 1, START)
    logits = torch.randn(rows, vocab, device=run.device)
    samplers = DeviceSamplers(run, [Sampler(temperature=0.0).params] * rows, vocab)
    tokens = torch.full((rows, COUNT), -1, dtype=torch.int32, device=run.device)
    probs = torch.zeros(rows, COUNT, device=run.device)
    laws = torch.zeros(3 * rows, dtype=torch.int64, device=run.device)
    shared = shared_arguments(run, batch, rows, 1)
    shared["probs"] = torch.zeros(2 * rows, device=run.device)
    chosen = choosing(logits, samplers, shared, laws)

    def ours() -> None:
        run("choose", **chosen)
        run("runners_up", chosen, count=COUNT, tokens=tokens, probs=probs)

    def theirs() -> object:
        return logits.softmax(-1).topk(COUNT)

    def error() -> float:
        ours()
        best = logits.topk(COUNT).indices
        likely = logits.softmax(-1).gather(1, best)
        right = (tokens == best) & torch.isclose(probs, likely, rtol=1e-4)
        return 1 - float(right.all(1).float().mean())

    return Case("runners_up", rows, 1, 0, ours, theirs, 4 * rows * vocab, 0, error)
