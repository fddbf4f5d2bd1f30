"""The rejection rule on a GPU: choosing and accepting rows of drafts that were proposed with
certainty (by tables) or drawn (by a model), all of which stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from bench.cuda_batch import START, batch_of, choosing, shared_arguments
from bench.op_case import Case, Size
from bench.shapes import vocabulary_of
from cascade_engine.ops import CpuBackend, DraftDistributions, Sampler
from cascade_engine.ops.cuda_rejection import DeviceDistributions, RejectionMemory, RowRejection
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher

SURE = 60.0


def rejection_cases(
    run: Launcher, host: CpuBackend, shape: str, sizes: Sequence[Size]
) -> Iterator[Case]:
    for rows, tokens in sizes:
        for drawn in (False, True):
            yield _case(run, host, vocabulary_of(shape), rows, tokens, drawn)


def _case(run: Launcher, host: CpuBackend, vocab: int, rows: int, width: int, drawn: bool) -> Case:
    """Rows that feed a token and `width` - 1 drafts."""
    batch = batch_of(run, rows, width, START)
    tokens = torch.zeros(batch["tokens"].shape, dtype=torch.int32)
    drafts = torch.randint(vocab, (rows, width - 1))
    tokens[:, START + 1 : START + width] = drafts
    batch["tokens"].copy_(tokens)
    logits = torch.randn(rows, width, vocab)
    if not drawn:
        logits[:, :-1].scatter_(2, drafts.unsqueeze(2), SURE)
    sampler = Sampler(seed=7, rejection=True)
    laws = DeviceDistributions(rows, vocab, run.device)
    laws_on_host = DraftDistributions(rows, vocab)
    for row in range(rows if drawn else 0):
        for j in range(width - 1):
            law = logits[row, j].softmax(-1)
            laws.put(row, START + 1 + j, law.to(run.device))
            laws_on_host.write(row, START + 1 + j, law.tolist())
    parts = [RowRejection(laws, row, START + 1, 0, width - 1, width) for row in range(rows)]
    memory = RejectionMemory(run, rows, width)
    memory.upload(list(parts))
    run.wait()
    samplers = DeviceSamplers(run, [sampler.params] * rows, vocab)
    results = torch.zeros(3, rows, dtype=torch.int32, device=run.device)
    shared = shared_arguments(run, batch, rows, width)
    chosen = choosing(logits.to(run.device), samplers, shared, memory.distributions)
    accepted = {
        "tokens": batch["tokens"],
        "draft_probs": None,
        "lenience": 1.0,
        "paths": None,
        "path_lengths": None,
        "kept_probs": None,
        "kept_stride": 0,
        "samplers": samplers.memory,
        "num_accepted": results[0],
        "own": results[1],
        "lengths": results[2],
        **shared,
    }

    def ours(alive: list[RowRejection] = parts) -> None:
        run("choose", **chosen)
        run("accept", **accepted)
        run("rejection", chosen, accepted, **memory.arguments())

    def error() -> float:
        ours()
        row_tokens = tokens.clone()
        verdicts = host.accept(
            logits=logits.data_ptr(),
            logits_stride=vocab,
            vocab=vocab,
            tokens=row_tokens.data_ptr(),
            token_stride=tokens.shape[1],
            probs=0,
            rows=list(range(rows)),
            frontiers=[START + 1] * rows,
            lengths=[START + width] * rows,
            samplers=[sampler] * rows,
            distributions=laws_on_host,
            rejections=[(0, True, width - 1)] * rows,
        )
        for row in range(rows if drawn else 0):
            for j in range(width - 1):
                laws_on_host.write(row, START + 1 + j, logits[row, j].softmax(-1).tolist())
        wanted = [(n, own) for n, own, _ in verdicts]
        found = list(zip(*results[:2].tolist(), strict=True))
        return sum(a != b for a, b in zip(wanted, found, strict=True)) / rows

    read = 4 * rows * width * vocab
    name = "drawn" if drawn else "certain"
    return Case("rejection", rows, width, 0, ours, None, read, 0, error, name)
