"""Native sampling and drafting called with tensors and lists, for the tests beside this file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from cascade_engine import _C
from tests.reference.sampling import Params

ISAS: list[str] = _C.build_info()["cpu_supported"]
every_isa = pytest.mark.parametrize("isa", ISAS)


def context(isa: str = "", threads: int = 1) -> _C.CpuContext:
    return _C.CpuContext(threads, isa)


def sampler(p: Params, rejection: bool = False) -> _C.Sampler:
    values = {**dataclasses.asdict(p), "rejection": rejection}
    return _C.Sampler(**{**values, "logit_bias": list(p.logit_bias), "stop_ids": list(p.stop_ids)})


def mask_words(allowed: Sequence[Sequence[bool]]) -> torch.Tensor:
    """Bit masks `[rows, ceil(vocab / 32)]` as native code reads them."""
    rows, vocab = len(allowed), len(allowed[0])
    bits = torch.zeros(rows, (vocab + 31) // 32 * 32, dtype=torch.int64)
    bits[:, :vocab] = torch.tensor(allowed, dtype=torch.int64)
    words = (bits.view(rows, -1, 32) << torch.arange(32)).sum(-1)
    return words.to(torch.uint32)


def sample(
    ctx: _C.CpuContext,
    logits: torch.Tensor,
    prefixes: Sequence[Sequence[int]],
    samplers: Sequence[_C.Sampler],
    masks: torch.Tensor | None = None,
) -> list[tuple[int, float]]:
    """(token, probability) after each prefix; logits float32 `[rows, vocab]`."""
    width = max(len(prefix) for prefix in prefixes) + 1
    rows = torch.tensor([[*p, *[0] * (width - len(p))] for p in prefixes], dtype=torch.int32)
    return _C.sample(
        ctx,
        logits.data_ptr(),
        logits.stride(0),
        logits.shape[1],
        rows.data_ptr(),
        width,
        list(range(len(prefixes))),
        [len(p) for p in prefixes],
        list(samplers),
        [] if masks is None else [masks[i].data_ptr() for i in range(len(prefixes))],
    )


def distribution(
    ctx: _C.CpuContext,
    logits: torch.Tensor,
    prefix: Sequence[int],
    p: Params,
    masks: torch.Tensor | None = None,
    processed: bool = True,
) -> dict[int, float]:
    """All log-probabilities that `_C.logprobs` gives for the token after `prefix`."""
    row = torch.tensor([[*prefix, 0]], dtype=torch.int32)
    [[(_, top)]] = _C.logprobs(
        ctx,
        logits.data_ptr(),
        logits.shape[-1],
        logits.shape[-1],
        row.data_ptr(),
        row.shape[1],
        [0],
        [0],
        [len(prefix)],
        [1],
        [sampler(p)],
        [logits.shape[-1]],
        [processed],
        [] if masks is None else [masks.data_ptr()],
    )
    return dict(top)


@dataclasses.dataclass
class Rows:
    """Rows under review: tokens and probs `[rows, capacity]`, logits `[logit rows, vocab]`."""

    tokens: torch.Tensor
    probs: torch.Tensor | None
    logits: torch.Tensor

    def accept(
        self,
        ctx: _C.CpuContext,
        rows: Sequence[int],
        frontiers: Sequence[int],
        lengths: Sequence[int],
        samplers: Sequence[_C.Sampler],
        lenience: float = 1.0,
        allowed: Sequence[int] = (),
        logit_rows: int = -1,
    ) -> list[tuple[int, int]]:
        verdicts = self.accept_trees(
            ctx, rows, frontiers, lengths, samplers, lenience, allowed, logit_rows, ()
        )
        return [(accepted, token) for accepted, token, _ in verdicts]

    def accept_trees(
        self,
        ctx: _C.CpuContext,
        rows: Sequence[int],
        frontiers: Sequence[int],
        lengths: Sequence[int],
        samplers: Sequence[_C.Sampler],
        lenience: float,
        allowed: Sequence[int],
        logit_rows: int,
        trees: Sequence[tuple[list[int], list[int], list[float]]],
        distributions: _C.DraftDistributions | None = None,
        rejections: Sequence[tuple[int, bool, int]] = (),
    ) -> list[tuple[int, int, list[int]]]:
        return _C.accept(
            ctx,
            self.logits.data_ptr(),
            self.logits.stride(0),
            self.logits.shape[1],
            self.tokens.data_ptr(),
            self.tokens.shape[1],
            0 if self.probs is None else self.probs.data_ptr(),
            list(rows),
            list(frontiers),
            list(lengths),
            list(samplers),
            lenience,
            list(allowed),
            logit_rows,
            list(trees),
            distributions,
            list(rejections),
        )


def propose(
    ctx: _C.CpuContext,
    tokens: Sequence[int],
    count: int,
    max_match: int = 32,
    table: _C.NgramTable | None = None,
    corpus: Sequence[int] | None = None,
) -> list[int]:
    """What is drafted behind `tokens`."""
    row = torch.tensor([*tokens, *[-1] * count], dtype=torch.int32)
    probs = torch.zeros(len(row))
    text = None if corpus is None else torch.tensor(corpus, dtype=torch.int32)
    corpora = ([], []) if text is None else ([text.data_ptr()], [len(text)])
    [drafted] = _C.propose(
        ctx,
        row.data_ptr(),
        len(row),
        probs.data_ptr(),
        [0],
        [len(tokens)],
        [count],
        max_match,
        table,
        *corpora,
    )
    end = len(tokens) + drafted
    assert row[: len(tokens)].tolist() == list(tokens)
    assert row[end:].tolist() == [-1] * (count - drafted)
    assert probs.tolist() == [0.0] * len(tokens) + [1.0] * drafted + [0.0] * (count - drafted)
    return row[len(tokens) : end].tolist()
