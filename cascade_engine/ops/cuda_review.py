"""Reviews on the device: the acceptance rule over the logits that a pass left there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from cascade_engine import _C
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.cuda_program import MAX_NODES, CudaProgram, host_floats, host_ints
from cascade_engine.ops.cuda_rejection import DeviceDistributions, RejectionMemory, RowRejection
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher

REASONS = {
    -1: "the logits for position {} are NaN or +inf; the model's weights or its input are broken",
    -2: "no token is allowed at position {}: the allowed-token mask, logit_bias and min_tokens "
    "exclude all",
}


class Decided(NamedTuple):
    """What acceptance leaves: `[4, rows]` accepted, own, lengths, path lengths; paths; and where
    they are asked for probabilities of what rows gain, runners-up and logits."""

    numbers: torch.Tensor
    paths: torch.Tensor
    kept: torch.Tensor | None
    ranked: torch.Tensor | None
    """int32 `[2, rows, logits, count]`: tokens, and float32 their probabilities."""
    logits: torch.Tensor | None
    """float32 `[rows that ask, logits, vocab]`."""

    def fetched(self, run: Launcher) -> Decided:
        """The same on the host, in one copy."""
        parts = [part for part in self if part is not None]
        whole = run.fetch(torch.cat([part.view(torch.int32).view(-1) for part in parts]))
        copies = iter(whole.split([part.numel() for part in parts]))
        return Decided._make(
            None if part is None else next(copies).view(part.dtype).view(part.shape)
            for part in self
        )


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
        trees: Sequence[tuple[list[int], list[int], list[float]]] = (),
        rejections: Sequence[tuple[int, bool, int]] = (),
        distributions: DeviceDistributions | None = None,
        runners_up: int = 0,
        logprobs: Sequence[int] = (),
    ) -> list[tuple[int, int, list[int]]]:
        """As `_C.accept`; finds `runners_up` for `siblings` and brings the logits of the rows
        `logprobs` for `logprobs`, which come next. Raises ValueError when a row's logits allow no
        token, and leaves the rows as they were."""
        needed = sum(end - begin + 1 for begin, end in zip(frontiers, lengths, strict=True))
        if logit_rows >= 0 and needed != logit_rows:
            raise ValueError(
                f"the rows need {needed} logit rows (length - frontier + 1 each), got {logit_rows}"
            )
        program = self._program(logits)
        shape = program.shape
        given = self._device_samplers(samplers, shape.rows, vocab)
        masks = self._masks(allowed, frontiers, lengths, vocab, shape.logits)
        edits = given.edits or masks is not None
        size = shape.rows * shape.logits
        host_rows = host_ints(tokens, token_stride * (max(rows) + 1)).view(-1, token_stride)
        if edits:
            for i, row in enumerate(rows):
                tree = bool(trees) and bool(trees[i][0])  # its nodes are there already
                program.on_device.send_tokens(row, frontiers[i] if tree else lengths[i])
        host_probs = (
            None if probs == 0 else host_floats(probs, host_rows.numel()).view(host_rows.shape)
        )
        draft_probs = kept = None
        if host_probs is not None:
            drafted: list[Sequence[float]] = [
                host_probs[row, frontier:length].tolist()
                for row, frontier, length in zip(rows, frontiers, lengths, strict=True)
            ]
            for j, (tokens_of_tree, _, node_probs) in enumerate(trees):
                drafted[j] = node_probs if tokens_of_tree else drafted[j]
            draft_probs = self._draft_probs(drafted, rows, frontiers, program)
            kept = torch.zeros(shape.rows, shape.logits, device=self._run.device)
        out = torch.zeros(4, shape.rows, dtype=torch.int32, device=self._run.device)
        paths = torch.zeros(shape.rows, MAX_NODES, dtype=torch.int32, device=self._run.device)
        rejecting: list[RowRejection | None] = [None] * len(rows)
        memory = None
        if given.rejects:
            reviews = zip(rows, frontiers, lengths, rejections, strict=True)
            rejecting = _rejecting(samplers, list(reviews), distributions, vocab)
            memory = self._rejection_memory(shape.rows, shape.logits)
            memory.upload(rejecting)
        shared = {
            "batch": program.batch if trees else {**program.batch, "bases": None},
            "wanted": program.wanted,
            "logit_width": shape.logits,
            "best": self._zeros("best", size, torch.int64),
            "probs": None if probs == 0 else self._zeros("probs", 2 * size, torch.float32),
        }
        chosen = {
            "logits": logits,
            "logits_stride": logits_stride,
            "vocab": vocab,
            "allowed": masks,
            "edits": edits,
            "filters": True,
            "processed": self._zeros("processed", size * vocab, torch.float32) if edits else None,
            "seen": self._zeros("seen", size * vocab, torch.int32) if edits else None,
            "distributions": self._zeros("laws", 3 * size, torch.int64)
            if memory is None
            else memory.distributions,
            **given.arguments(),
            **shared,
        }
        self._run("choose", **chosen)
        for row, frontier, length in zip(rows, frontiers, lengths, strict=True):
            program.on_device.forget(row, frontier, length + 1)
        accepted = {
            "tokens": program.on_device.tokens,
            "draft_probs": draft_probs,
            "lenience": lenience,
            "num_accepted": out[0],
            "own": out[1],
            "lengths": out[2],
            "paths": paths if trees else None,
            "path_lengths": out[3] if trees else None,
            "kept_probs": kept,
            "kept_stride": shape.logits,
            "samplers": given.memory,
            **shared,
        }
        self._run("accept", **accepted)
        if memory is not None:
            self._run("rejection", chosen, accepted, **memory.arguments())
        ranked = None
        if runners_up:
            count = runners_up + 1  # the token itself is among them
            sizes = (2, shape.rows, shape.logits, count)
            ranked = torch.zeros(sizes, dtype=torch.int32, device=self._run.device)
            self._run("runners_up", chosen, count=count, tokens=ranked[0], probs=ranked[1])
        brought = None
        if logprobs:
            each = _logits_of(program, logits).view(shape.rows, shape.logits, -1)
            brought = torch.stack([each[rows.index(row), :, :vocab] for row in logprobs])
        decided = Decided(out, paths, kept, ranked, brought).fetched(self._run)
        self._ranked = (list(rows), decided.ranked)
        self._brought = (list(logprobs), decided.logits)
        num_accepted, owns, _, _ = decided.numbers.tolist()
        for n, own, frontier in zip(num_accepted, owns, frontiers, strict=False):
            if own < 0:
                raise ValueError(REASONS[own].format(frontier + n))
        results: list[tuple[int, int, list[int]]] = []
        for i, (row, frontier) in enumerate(zip(rows, frontiers, strict=True)):
            n, own = num_accepted[i], owns[i]
            part = rejecting[i]
            if part is not None:
                part.settle(n + 1)
            nodes = trees[i][0] if trees else []
            path = decided.paths[i, :n].tolist() if nodes else []
            if nodes:
                taken = torch.tensor([nodes[node] for node in path], dtype=torch.int32)
                host_rows[row, frontier : frontier + n] = taken
            host_rows[row, frontier + n] = own
            program.on_device.wrote(row, frontier, host_rows[row, frontier : frontier + n + 1])
            if host_probs is not None and decided.kept is not None:
                host_probs[row, frontier : frontier + n + 1] = decided.kept[i, : n + 1]
            results.append((n, own, path))
        return results

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

    def _masks(
        self,
        allowed: Sequence[int],
        frontiers: Sequence[int],
        lengths: Sequence[int],
        vocab: int,
        width: int,
    ) -> torch.Tensor | None:
        """int32 `[rows, width, words]`; rows without a mask allow everything."""
        if not any(allowed):
            return None
        words = (vocab + 31) // 32
        masks = torch.full((len(allowed), width, words), -1, dtype=torch.int32)
        for i, address in enumerate(allowed):
            count = lengths[i] - frontiers[i] + 1
            if address:
                masks[i, :count] = host_ints(address, count * words).view(count, words)
        return self._run.send(masks)

    def _draft_probs(
        self,
        drafted: Sequence[Sequence[float]],
        rows: Sequence[int],
        frontiers: Sequence[int],
        program: CudaProgram,
    ) -> torch.Tensor:
        """float32 like the device's tokens, filled where this review looks."""
        shape = program.on_device.tokens.shape
        memory = self._zeros("draft_probs", shape.numel(), torch.float32)[: shape.numel()]
        places = [
            torch.arange(len(values)) + (row * shape[1] + frontier)
            for values, row, frontier in zip(drafted, rows, frontiers, strict=True)
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


def _rejecting(
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
