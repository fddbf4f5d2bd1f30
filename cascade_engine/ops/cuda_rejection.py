"""What reviews by the rejection rule need on the device beside what all reviews need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.ops.launch import Launcher


class DeviceDistributions:
    """As the native DraftDistributions, in device memory: for drafted tokens of each row, by
    position, what they were drawn from, float32 `[vocab]`."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        self.vocab = vocab
        self._device = device
        self._rows: list[dict[int, torch.Tensor]] = [{} for _ in range(rows)]

    @property
    def held(self) -> int:
        """Distributions in use."""
        return sum(map(len, self._rows))

    def new(self) -> torch.Tensor:
        """Memory for one."""
        return torch.empty(self.vocab, device=self._device)

    def find(self, row: int, position: int) -> torch.Tensor | None:
        """None: the token was proposed with certainty."""
        return self._rows[row].get(position)

    def put(self, row: int, position: int, probs: torch.Tensor) -> None:
        self._rows[row][position] = probs

    def truncate(self, row: int, length: int) -> None:
        """Forgets the tokens of a row from position `length` on."""
        kept = self._rows[row]
        self._rows[row] = {p: probs for p, probs in kept.items() if p < length}

    def clear(self, row: int) -> None:
        """Forgets a row."""
        self._rows[row] = {}


class RowRejection:
    """One row's part in a review, or in reviews of nothing one after the other, of which `number`
    is the first among all of the row. The `own` tokens from the frontier on are drafts of the row
    itself. `places`: tokens that the reviews leave at most, where their distributions are kept for
    a better level; else 0."""

    def __init__(
        self,
        distributions: DeviceDistributions,
        row: int,
        frontier: int,
        number: int,
        own: int = 0,
        places: int = 0,
    ) -> None:
        self._distributions, self._row, self._frontier = distributions, row, frontier
        self.number = number
        self.drawn = [distributions.find(row, frontier + j) for j in range(own)]
        # Not where they were: a review that fails leaves what there is.
        self.kept = [distributions.new() for _ in range(places)]

    def settle(self, gained: int) -> None:
        """The row has `gained` tokens from the frontier on."""
        end = self._frontier + gained if self.kept else 0
        self._distributions.truncate(self._row, end)
        for i, probs in enumerate(self.kept[:gained]):
            self._distributions.put(self._row, self._frontier + i, probs)


def rejecting_rows(
    samplers: Sequence[Any],
    reviews: Sequence[tuple[int, int, int, tuple[int, bool, int]]],
    distributions: DeviceDistributions | None,
    vocab: int,
) -> list[RowRejection | None]:
    """Of reviews (row, frontier, length, rejection) those that reject."""
    if distributions is None or distributions.vocab != vocab:
        raise ValueError(
            f"the rejection rule compares whole distributions over {vocab} tokens: pass such "
            "distributions"
        )
    return [
        RowRejection(distributions, row, begin, number, own, end - begin + 1 if keeps else 0)
        if sampler.rejects
        else None
        for sampler, (row, begin, end, (number, keeps, own)) in zip(samplers, reviews, strict=True)
    ]


class RejectionMemory:
    """Of reviews of one shape, at addresses that stay: `passes` of them one after the other."""

    def __init__(self, run: Launcher, rows: int, width: int, passes: int = 1) -> None:
        self._run, self._rows, self._width = run, rows, width
        size, device = rows * width, run.device
        self._told_host = run.staging(passes, 2 * size + rows, dtype=torch.int64)
        self._told = torch.zeros(passes, 2 * size + rows, dtype=torch.int64, device=device)
        self.distributions = torch.zeros(size, 3, dtype=torch.int64, device=device)
        self._rests = torch.zeros(size, 2, dtype=torch.int64, device=device)
        self._judged = torch.zeros(size, 3, dtype=torch.int32, device=device)

    def upload(self, rows: Sequence[RowRejection | None]) -> None:
        """What the reviews have to know of each row; with the next wait it has been read."""
        host, size = self._told_host, self._rows * self._width
        host.zero_()
        several = len(host) > 1
        for r, row in enumerate(rows):
            if row is None:
                continue
            first = r * self._width
            kept = torch.tensor([probs.data_ptr() for probs in row.kept], dtype=torch.int64)
            drawn = [0 if probs is None else probs.data_ptr() for probs in row.drawn]
            host[0, first : first + len(drawn)] = torch.tensor(drawn, dtype=torch.int64)
            if several:
                host[: len(kept), size + first] = kept
            else:
                host[0, size + first : size + first + len(kept)] = kept
            host.view(torch.int32)[:, 4 * size + r] = row.number + torch.arange(len(host))
        self._run.upload(self._told, host)

    def arguments(self, i: int = 0) -> dict[str, Any]:
        """Of pass i, as RejectionArgs has them."""
        size = self._rows * self._width
        told = self._told[i]
        return {
            "drawn": told[:size],
            "kept": told[size : 2 * size],
            "numbers": told[2 * size :].view(torch.int32),
            "rests": self._rests,
            "judged": self._judged,
        }
