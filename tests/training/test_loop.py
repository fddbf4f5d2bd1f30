"""A run that stops and goes on ends with the weights of one that did not stop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from cascade_engine.training.batches import Batch
from cascade_engine.training.loop import Loop, Schedule


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def batches(first: int) -> Iterator[Batch]:
    step = first
    while True:
        generator = torch.Generator().manual_seed(step)
        yield Batch(torch.randint(0, 9, (3, 4), generator=generator), torch.ones(3, 4))
        step += 1


def run(folder: Path, steps: int, until: int | None = None, resume: bool = False) -> Loop:
    torch.set_num_threads(1)
    net = model()
    schedule = Schedule(steps, 1e-2, 1e-2, report_every=2)
    loop = Loop(net, folder, schedule, "test")
    if resume:
        loop.load()
    begin, reports = loop.step, list[int]()
    done = loop.run(
        batches(loop.step),
        lambda batch: net(batch.tokens.float()).square().mean(),
        lambda loss: reports.append(loop.step),
        until,
    )
    assert done == (loop.step == steps)
    assert reports == [s for s in range(begin + 1, loop.step + 1) if s % 2 == 0 or s == steps]
    return loop


def test_resuming_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 5, until=3)
    parts = run(tmp_path / "parts", 5, resume=True)
    assert parts.step == 5
    assert parts.tokens == whole.tokens == 5 * 12
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(whole.model.parameters()), next(model().parameters()))


def test_the_rate_warms_up_and_falls_to_nothing(tmp_path: Path) -> None:
    loop = Loop(model(), tmp_path, Schedule(1000, 1.0, 1.0), "test")
    rates = []
    for step in (0, 99, 500, 650, 825, 1000):
        loop.step = step
        rates.append(round(loop.rate(), 3))
    assert rates == [0.01, 1.0, 1.0, 1.0, 0.5, 0.0]
