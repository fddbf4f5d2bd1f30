"""Reviews on the device: the acceptance rule over the logits that a pass left there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.cuda_batch import MAX_NODES, Shape, host_floats, host_ints
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.cuda_rejection import (
    DeviceDistributions,
    RejectionMemory,
    RowRejection,
    rejecting_rows,
)
from cascade_engine.ops.cuda_review_data import Asked, Decided, Tree, allowed_masks
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher


class CudaReview:
    """Calls choose and accept for the program whose logits are at the given address.

    Rows live on the host between reviews: what a review needs goes up with the pass, what it
    decides comes back in one copy.
    """

    def __init__(self, launcher: Launcher, cpu: CpuBackend) -> None:
        self.programs: list[CudaProgram] = []
        self._run = launcher
        self._cpu = cpu
        self._samplers: tuple[list[Any], int, DeviceSamplers] | None = None
        self._scratch: dict[str, torch.Tensor] = {}
        self._rejections: dict[tuple[int, int], RejectionMemory] = {}
        self._ranked: tuple[list[int], torch.Tensor | None] = ([], None)
        """Rows of the last review, and its runners-up."""
        self._brought: tuple[list[int], torch.Tensor | None] = ([], None)
        """Rows of it that ask for log-probabilities, and their logits."""

    def accept(
        self,
        logits: int,
        logits_stride: int,
        vocab: int,
        tokens: int,
        token_stride: int,
        probs: int,
        rows: Sequence[int],
        frontiers: Sequence[int],
        lengths: Sequence[int],
        samplers: Sequence[Any],
        lenience: float = 1.0,
        allowed: Sequence[int] = (),
        logit_rows: int = -1,
        trees: Sequence[Tree] = (),
        rejections: Sequence[tuple[int, bool, int]] = (),
        distributions: DeviceDistributions | None = None,
        runners_up: int = 0,
        logprobs: Sequence[int] = (),
    ) -> list[tuple[int, int, list[int]]]:
        """As `_C.accept`; finds `runners_up` for `siblings` and brings the logits of the rows
        `logprobs` for `logprobs`, which come next. Raises ValueError when a row's logits allow no
        token, and leaves the rows as they were."""
        ask = Asked(rows, frontiers, lengths, samplers, trees)
        if logit_rows >= 0 and ask.logit_rows() != logit_rows:
            raise ValueError(
                f"the rows need {ask.logit_rows()} logit rows (length - frontier + 1 each), got "
                f"{logit_rows}"
            )
        program = self._program(logits)
        shape = program.shape
        given = self._device_samplers(samplers, shape.rows, vocab)
        masks = allowed_masks(self._run, allowed, frontiers, lengths, vocab, shape.logits)
        edits = given.edits or masks is not None
        if edits:
            for row, known in zip(rows, ask.known(), strict=True):
                program.on_device.send_tokens(row, known)
        host_rows = host_ints(tokens, token_stride * (max(rows) + 1)).view(-1, token_stride)
        host_probs = (
            None if probs == 0 else host_floats(probs, host_rows.numel()).view(host_rows.shape)
        )
        rejecting: list[RowRejection | None] = [None] * len(rows)
        memory = None
        if given.rejects:
            reviews = zip(rows, frontiers, lengths, rejections, strict=True)
            rejecting = rejecting_rows(samplers, list(reviews), distributions, vocab)
            memory = self._rejection_memory(shape.rows, shape.logits)
            memory.upload(rejecting)
        shared = {
            "batch": program.batch if trees else {**program.batch, "bases": None},
            "wanted": program.wanted,
            "logit_width": shape.logits,
            "best": self._zeros("best", shape.rows * shape.logits, torch.int64),
            "probs": None
            if host_probs is None
            else self._zeros("probs", 2 * shape.rows * shape.logits, torch.float32),
        }
        chosen = {
            "logits": logits,
            "logits_stride": logits_stride,
            "allowed": masks,
            **self._choice_memory(shape, vocab, edits),
            **given.arguments(),
            **shared,
        }
        if memory is not None:
            chosen["distributions"] = memory.distributions
        self._run("choose", **chosen)
        for row, frontier, length in zip(rows, frontiers, lengths, strict=True):
            program.on_device.forget(row, frontier, length + 1)
        decided = self._empty(shape, host_probs is not None)
        accepted = {
            **decided.outputs(bool(trees)),
            **shared,
            "tokens": program.on_device.tokens,
            "draft_probs": None
            if host_probs is None
            else self._draft_probs(ask, host_probs, program),
            "lenience": lenience,
            "kept_stride": shape.logits,
            "samplers": given.memory,
        }
        self._run("accept", **accepted)
        if memory is not None:
            self._run("rejection", chosen, accepted, **memory.arguments())
        if runners_up:
            decided = decided._replace(ranked=self._runners_up(chosen, shape, runners_up))
        if logprobs:
            each = _logits_of(program, logits).view(shape.rows, shape.logits, -1)
            brought = torch.stack([each[rows.index(row), :, :vocab] for row in logprobs])
            decided = decided._replace(logits=brought)
        decided = decided.fetched(self._run)
        self._ranked = (list(rows), decided.ranked)
        self._brought = (list(logprobs), decided.logits)
        results = decided.results(ask)
        for part, (n, _, _) in zip(rejecting, results, strict=True):
            if part is not None:
                part.settle(n + 1)
        self._write(ask, results, decided, program, host_rows, host_probs)
        return results

    def _choice_memory(self, shape: Shape, vocab: int, edits: bool) -> dict[str, Any]:
        """What choosing works in; `processed` and `seen` where logits are edited."""
        size = shape.rows * shape.logits
        return {
            "vocab": vocab,
            "edits": edits,
            "filters": True,
            "processed": self._zeros("processed", size * vocab, torch.float32) if edits else None,
            "seen": self._zeros("seen", size * vocab, torch.int32) if edits else None,
            "distributions": self._zeros("laws", 3 * size, torch.int64),
        }

    def _empty(self, shape: Shape, keeps: bool) -> Decided:
        device = self._run.device
        return Decided(
            torch.zeros(4, shape.rows, dtype=torch.int32, device=device),
            torch.zeros(shape.rows, MAX_NODES, dtype=torch.int32, device=device),
            torch.zeros(shape.rows, shape.logits, device=device) if keeps else None,
        )

    def _runners_up(self, chosen: dict[str, Any], shape: Shape, wanted: int) -> torch.Tensor:
        count = wanted + 1  # the token itself is among them
        sizes = (2, shape.rows, shape.logits, count)
        ranked = torch.zeros(sizes, dtype=torch.int32, device=self._run.device)
        self._run("runners_up", chosen, count=count, tokens=ranked[0], probs=ranked[1])
        return ranked

    def _write(
        self,
        ask: Asked,
        results: Sequence[tuple[int, int, list[int]]],
        decided: Decided,
        program: CudaProgram,
        host_rows: torch.Tensor,
        host_probs: torch.Tensor | None,
    ) -> None:
        """The rows on the host get what a review leaves of them, and it is known on the device."""
        for i, (row, frontier) in enumerate(zip(ask.rows, ask.frontiers, strict=True)):
            n, own, path = results[i]
            tree = ask.tree(i)
            if tree is not None:
                taken = torch.tensor([tree[0][node] for node in path], dtype=torch.int32)
                host_rows[row, frontier : frontier + n] = taken
            host_rows[row, frontier + n] = own
            program.on_device.wrote(row, frontier, host_rows[row, frontier : frontier + n + 1])
            if host_probs is not None and decided.kept is not None:
                host_probs[row, frontier : frontier + n + 1] = decided.kept[i, : n + 1]

    def siblings(
        self,
        tokens: int,
        token_stride: int,
        rows: Sequence[int],
        starts: Sequence[int],
        counts: Sequence[int],
        paths: Sequence[Sequence[int]],
        siblings: Sequence[int],
        **_: Any,
    ) -> list[list[list[tuple[int, float]]]]:
        """As `_C.siblings`, of rows of the last review, which was asked for as many."""
        reviewed, found = self._ranked
        assert found is not None
        ids, probs = found[0].tolist(), found[1].view(torch.float32).tolist()
        ranked = []
        for row, start, n, path, wanted in zip(rows, starts, counts, paths, siblings, strict=True):
            i = reviewed.index(row)
            own = host_ints(tokens + 4 * (row * token_stride + start), n).tolist()
            pairs = [zip(ids[i][offset], probs[i][offset], strict=True) for offset in path]
            ranked.append(
                [
                    [(other, prob) for other, prob in each if other not in (-1, token)][:wanted]
                    for each, token in zip(pairs, own, strict=True)
                ]
            )
        return ranked

    def logprobs(
        self,
        logits: int,
        logits_stride: int,
        rows: Sequence[int],
        first_logit_rows: Sequence[int],
        **arguments: Any,
    ) -> list[list[tuple[float, list[tuple[int, float]]]]]:
        """As `_C.logprobs`, of rows of the last review, which was asked for their logits."""
        brought, copy = self._brought
        assert copy is not None
        return _C.logprobs(
            self._cpu.context,
            logits=copy.data_ptr(),
            logits_stride=copy.stride(1),
            rows=rows,
            first_logit_rows=[brought.index(row) * copy.shape[1] for row in rows],
            **arguments,
        )

    def _program(self, logits: int) -> CudaProgram:
        for program in self.programs:
            if any(program.data(i) == logits for i, b in enumerate(program.buffers) if b.per_logit):
                return program
        raise ValueError(f"no program has logits at address {logits:#x}")

    def _device_samplers(self, samplers: Sequence[Any], rows: int, vocab: int) -> DeviceSamplers:
        """Kept while the same requests are reviewed."""
        kept = self._samplers
        same = kept is not None and kept[1] == rows and len(kept[0]) == len(samplers)
        if (
            kept is None
            or not same
            or any(a is not b for a, b in zip(kept[0], samplers, strict=True))
        ):
            params = [s.params for s in samplers]
            params += [params[0]] * (rows - len(params))
            kept = (list(samplers), rows, DeviceSamplers(self._run, params, vocab))
            self._samplers = kept
        return kept[2]

    def _rejection_memory(self, rows: int, width: int) -> RejectionMemory:
        if (rows, width) not in self._rejections:
            self._rejections[rows, width] = RejectionMemory(self._run, rows, width)
        return self._rejections[rows, width]

    def _draft_probs(
        self, ask: Asked, host_probs: torch.Tensor, program: CudaProgram
    ) -> torch.Tensor:
        """float32 like the device's tokens, filled where this review looks."""
        shape = program.on_device.tokens.shape
        memory = self._zeros("draft_probs", shape.numel(), torch.float32)[: shape.numel()]
        drafted = ask.draft_probs(host_probs)
        places = [
            torch.arange(len(values)) + (row * shape[1] + frontier)
            for values, row, frontier in zip(drafted, ask.rows, ask.frontiers, strict=True)
        ]
        values = torch.cat([torch.tensor(list(values)) for values in drafted])
        if len(values):
            send = self._run.send
            memory.index_copy_(0, send(torch.cat(places)), send(values))
        return memory.view(shape)

    def _zeros(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory that the kernels leave as zeros, or that they fill themselves."""
        if name not in self._scratch or self._scratch[name].numel() < size:
            self._scratch[name] = torch.zeros(size, dtype=dtype, device=self._run.device)
        return self._scratch[name]


def _logits_of(program: CudaProgram, address: int) -> torch.Tensor:
    """`[rows bucket * logits bucket, stride]` of the last pass."""
    memory = next(b.memory for i, b in enumerate(program.buffers) if program.data(i) == address)
    assert memory is not None
    return memory[: program.shape.rows * program.shape.logits]
