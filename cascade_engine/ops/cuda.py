"""The CUDA backend: weights packed for the tensor cores, forward passes recorded as launches.

Under the emulation (`tests/cuda`) the same code runs the same kernels on the host.
"""

from __future__ import annotations

import itertools
import operator
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cascade_engine import _C
from cascade_engine.errors import RequestError
from cascade_engine.ops.cpu import CpuBackend
from cascade_engine.ops.cuda_action import MAX_MATCH
from cascade_engine.ops.cuda_action_data import MAX_ALONE
from cascade_engine.ops.cuda_batch import MAX_NODES, host_floats, host_ints
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.cuda_recorder import CudaRecorder
from cascade_engine.ops.cuda_rejection import DeviceDistributions, RowRejection
from cascade_engine.ops.cuda_review import CudaReview
from cascade_engine.ops.cuda_segments import CudaSegments, SegmentAsk, counted
from cascade_engine.ops.cuda_speculation import Ask, CudaSpeculation
from cascade_engine.ops.device_table import device_table
from cascade_engine.ops.kernel_choice import chosen_kernels
from cascade_engine.ops.launch import ELEMENT, Launcher
from cascade_engine.ops.weights import LinearWeight, PackedTiles

LINEAR_OUTPUTS, LINEAR_STEP = 128, 64
CONFIDENT_PASSES = 4
"""That are made at once where a row may stop before its last token."""
DEPENDENT_LAUNCH = "CASCADE_DEPENDENT_LAUNCH"
"""Other than 0: kernels start while those in front of them end (compute capability 9.0)."""
LEAST_CAPABILITY = (8, 0)
"""bfloat16 and half-precision tensor cores with asynchronous copies."""


def check_device(device: torch.device) -> None:
    """Raises RequestError, with the way out, for a GPU that cannot run the kernels."""
    if not hasattr(_C, "cuda"):
        raise RequestError(
            "device 'cuda': this build has no CUDA kernels; install nvcc and reinstall, or use "
            "device='cpu'"
        )
    if not torch.cuda.is_available():
        raise RequestError("device 'cuda': torch finds no NVIDIA GPU; use device='cpu'")
    check_capability(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))


def check_capability(name: str, capability: tuple[int, int]) -> None:
    if capability < LEAST_CAPABILITY:
        raise RequestError(
            f"{name} has compute capability {capability[0]}.{capability[1]}; the CUDA kernels need "
            "8.0 (Ampere) or newer; use device='cpu'"
        )


class CudaBackend:
    """One GPU. `launcher` replaces the extension's launchers, for the emulation; `graphs`: passes
    are captured in CUDA graphs. The first one on a device measures which kernels serve there."""

    most_drafts = MAX_NODES
    """Under one review of `draft_segments`."""
    rejects_in_segments = False
    """`draft_segments` is there for rows that go by the rejection rule."""

    def __init__(
        self,
        device: str = "cuda",
        threads: int | None = None,
        launcher: Launcher | None = None,
        graphs: bool = True,
    ) -> None:
        if launcher is None:
            check_device(torch.device(device))
            launcher = Launcher(_C.cuda, torch.device(device))
            launcher.choices = chosen_kernels(launcher)
            launcher.set_dependent(os.environ.get(DEPENDENT_LAUNCH, "0") not in ("", "0"))
        self.launcher = launcher
        self.device = launcher.device
        self.graphs = graphs and launcher.captures
        self.host = CpuBackend(threads)
        """For what is on the host."""
        self.context = self.host.context
        self._review = CudaReview(launcher, self.host)
        self._table: tuple[_C.NgramTable, dict[str, Any]] | None = None
        self._alone: dict[CudaProgram, CudaSpeculation] = {}
        self._segments: dict[CudaProgram, CudaSegments] = {}

    @property
    def isa(self) -> str:
        if self.device.type != "cuda":
            return "cuda (emulated)"
        major, minor = torch.cuda.get_device_capability(self.device)
        return f"cuda sm_{major}{minor}"

    def empty_linear(self, n: int, k: int, dtype: torch.dtype, bias: bool = False) -> LinearWeight:
        """A packed weight of zeros, to be filled with `fill_linear`."""
        if dtype not in ELEMENT:
            raise RequestError(
                f"device 'cuda' computes in bfloat16 or float16, got {dtype}; choose one of them, "
                "or device='cpu'"
            )
        tiles = -(-n // LINEAR_OUTPUTS) * LINEAR_OUTPUTS // 16
        steps = -(-k // LINEAR_STEP) * LINEAR_STEP // 16
        memory = torch.zeros(tiles, steps, 32, 8, dtype=dtype, device=self.device)
        vector = torch.zeros(n, device=self.device) if bias else None
        return LinearWeight(PackedTiles(n, k), memory, vector)

    def fill_linear(self, weight: LinearWeight, rows: torch.Tensor, first_row: int) -> None:
        """Copies `rows` `[count, k]` of any floating dtype to rows first_row.. on."""
        count, k = rows.shape
        if k != weight.handle.k:
            raise ValueError(f"rows of {k} columns do not fit k = {weight.handle.k}")
        tiles, steps = weight.memory.shape[:2]
        part = torch.nn.functional.pad(
            rows.to(self.device, weight.memory.dtype), (0, -k % LINEAR_STEP)
        )
        # row = 16 tile + 8 half + g; k = 16 step + 8 k_half + 2 q + e (ce/cuda_kernels.h)
        part = part.view(count, steps, 2, 4, 2).transpose(2, 3)
        row = torch.arange(first_row, first_row + count, device=self.device)
        view = weight.memory.view(tiles, steps, 8, 4, 2, 2, 2)
        view[row // 16, :, row % 8, :, :, row % 16 // 8] = part

    def pack_linear(
        self, weight: torch.Tensor, dtype: torch.dtype, bias: torch.Tensor | None = None
    ) -> LinearWeight:
        """Packs a dense `[n, k]` weight."""
        packed = self.empty_linear(weight.shape[0], weight.shape[1], dtype, bias is not None)
        self.fill_linear(packed, weight, 0)
        if bias is not None and packed.bias is not None:
            packed.bias.copy_(bias)
        return packed

    def distributions(self, rows: int, vocab: int) -> DeviceDistributions:
        """What drafted tokens of rows were drawn from, for the rejection rule."""
        return DeviceDistributions(rows, vocab, self.device)

    def recorder(self) -> CudaRecorder:
        recorder = CudaRecorder(self.launcher, self.graphs)
        self._review.programs.append(recorder.program)
        return recorder

    def speculation(
        self,
        program: CudaProgram,
        logits: int,
        vocab: int,
        table: _C.NgramTable | None,
        **options: Any,
    ) -> CudaSpeculation | None:
        """Drafts and reviews of this program as one action of the device; options as
        CudaSpeculation has them. Levels share what is there of a table."""
        return CudaSpeculation(
            *(self.launcher, program, logits, vocab, self._on_device(table)),
            graphs=self.graphs,
            **options,
        )

    def draft(
        self,
        program: CudaProgram,
        logits: int,
        vocab: int,
        tokens: int,
        token_stride: int,
        probs: int,
        rows: Sequence[int],
        cached: Sequence[int],
        lengths: Sequence[int],
        counts: Sequence[int],
        samplers: Sequence[Any],
        left_padded: bool = False,
        distributions: DeviceDistributions | None = None,
        reviews: Sequence[int] = (),
        min_confidences: Sequence[float] = (),
    ) -> list[int]:
        """As `_C.draft`: the passes of a level that drafts on its own, one wait for all. Batches
        are always dense."""
        action = self._alone.get(program)
        if action is None:
            action = CudaSpeculation(self.launcher, program, logits, vocab, graphs=self.graphs)
            self._alone[program] = action
        most = CONFIDENT_PASSES if any(min_confidences) else MAX_ALONE
        sizes = zip(rows, lengths, counts, samplers, cached, strict=True)
        asks = [Ask(row, n, k, 0, sampler, begin, n) for row, n, k, sampler, begin in sizes]
        if distributions is not None:
            asks = [
                _rejecting(ask, distributions, number, most) if ask.sampler.rejects else ask
                for ask, number in zip(asks, reviews, strict=True)
            ]
        drafted = action.draft(asks, most)
        made = []
        for ask, found, least in zip(
            asks, drafted, min_confidences or [0.0] * len(asks), strict=True
        ):
            sure = itertools.accumulate(found.probs, operator.mul)
            n = next((i for i, prob in enumerate(sure, 1) if prob < least), len(found.tokens))
            place = ask.row * token_stride + ask.length
            host_ints(tokens + 4 * place, n).copy_(torch.tensor(found.tokens[:n]))
            host_floats(probs + 4 * place, n).copy_(torch.tensor(found.probs[:n]))
            if ask.rejection is not None:
                ask.rejection.settle(n)
            made.append(n)
        return made

    def draft_segments(
        self,
        program: CudaProgram,
        logits: int,
        vocab: int,
        tokens: int,
        token_stride: int,
        probs: int,
        rows: Sequence[tuple[Any, ...]],
        lenience: float,
        max_match: int,
        table: _C.NgramTable | None = None,
        left_padded: bool = False,
        distributions: Any = None,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """As `_C.draft_segments`, for rows that go by the `exact` rule: reviews of at most
        MAX_NODES drafts, many of them for one wait. Proposals are a part of them and take no time
        of their own. `table`: the same for all calls with a program."""
        if max_match != MAX_MATCH:
            raise ValueError(f"max_match is {MAX_MATCH} on a device, got {max_match}")
        segments = self._segments.get(program)
        if segments is None:
            given = (self.launcher, program, logits, vocab, self._on_device(table), self.graphs)
            segments = self._segments[program] = CudaSegments(*given)
        asks = []
        for *sizes, sampler, _, corpus, count, least in rows:
            text = host_ints(corpus, count) if count else None
            asks.append(SegmentAsk.of(sizes, sampler, text, least))
        begins, start = [ask.length for ask in asks], time.perf_counter()
        rounds = segments.draft(asks, lenience)
        seconds = (time.perf_counter() - start) / len(rounds)
        for ask, begin in zip(asks, begins, strict=True):
            place = ask.row * token_stride + begin
            host_floats(probs + 4 * place, len(ask.probs)).copy_(torch.tensor(ask.probs))
        return counted(rounds, len(asks), seconds)

    def accept(self, **arguments: Any) -> list[tuple[int, int, list[int]]]:
        """The acceptance rule over the logits of the program that ran last with them; arguments as
        `_C.accept`. One wait for the device."""
        return self._review.accept(**arguments)

    def logprobs(self, **arguments: Any) -> Any:
        """Log-probabilities of tokens that the last review left, which was asked for their rows:
        computed on the host, from logits that came with what it decided."""
        return self._review.logprobs(**arguments)

    def siblings(self, **arguments: Any) -> Any:
        """Runners-up of tokens that the last review left, which was asked for as many."""
        return self._review.siblings(**arguments)

    def _on_device(self, table: _C.NgramTable | None) -> dict[str, Any] | None:
        if table is not None and (self._table is None or self._table[0] is not table):
            self._table = table, device_table(table, self.device)
        return None if table is None or self._table is None else self._table[1]

    def propose(self, **arguments: Any) -> list[int]:
        """Max-Gram and tables over the host's rows; their tokens go up with the next pass."""
        return self.host.propose(**arguments)

    def propose_trees(self, drafter: _C.Drafter, **arguments: Any) -> list[int]:
        """Trees and chains by n-gram statistics, on the host as well."""
        return self.host.propose_trees(drafter, **arguments)


def _rejecting(ask: Ask, distributions: DeviceDistributions, number: int, most: int) -> Ask:
    """The same of a row that goes by the rejection rule, with the number of its first review."""
    places = min(ask.count, most)
    part = RowRejection(distributions, ask.row, ask.length, number, places=places)
    return replace(ask, rejection=part)
