"""What actions of the device have in common: memory at addresses that stay, one CUDA graph for each
kind, and what rows and requests have there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch

from cascade_engine.ops.cuda_action import CudaAction
from cascade_engine.ops.cuda_action_data import Kind, Memory
from cascade_engine.ops.cuda_batch import Shape, bucket
from cascade_engine.ops.cuda_program import CudaProgram
from cascade_engine.ops.device_samplers import DeviceSamplers
from cascade_engine.ops.launch import Launcher


class RowAsk(Protocol):
    """What every action is asked for a row."""

    @property
    def row(self) -> int: ...

    @property
    def sampler(self) -> Any: ...

    @property
    def prediction(self) -> torch.Tensor | None: ...


class DeviceActions:
    """Actions of the level whose passes `program` runs, with one wait each."""

    def __init__(
        self, launcher: Launcher, program: CudaProgram, action: CudaAction, graphs: bool
    ) -> None:
        self._run, self._program, self._action = launcher, program, action
        self._memory: dict[Shape, Memory] = {}
        self._graphs: dict[Kind, Callable[[], object] | None] | None = {} if graphs else None
        self._moves = 0
        self._predictions: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _new_memory(self, shape: Shape) -> Memory:
        return Memory(self._run, shape)

    def _act(
        self,
        kind: Kind,
        asks: Sequence[RowAsk],
        upload: Callable[[Memory], None],
        download: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """One action, and the wait for it: its report. `kind` says nothing of the samplers yet;
        `upload` tells the device what is asked, `download` copies what comes back beside the
        report."""
        moves = self._program.prepare(kind.shape)
        memory = self._memory.get(kind.shape)
        if memory is None:
            memory = self._memory[kind.shape] = self._new_memory(kind.shape)
        moved = self._fill_samplers(memory, [ask.sampler for ask in asks])
        kind = replace(kind, edits=memory.edits, filters=memory.filters, rejects=memory.rejects)
        moved = self._action.reserve(kind) or moved
        if self._graphs is not None and (moved or moves != self._moves):
            self._graphs.clear()
        self._moves = moves
        upload(memory)
        self._execute(kind, memory)
        self._run.download(memory.report_host, memory.report)
        if download is not None:
            download()
        self._run.wait()
        return memory.report_host

    def _fill_samplers(self, memory: Memory, samplers: list[Any]) -> bool:
        """Kept while the same requests are reviewed; True where memory has moved."""
        same = len(samplers) == len(memory.sampled)
        if same and all(a is b for a, b in zip(samplers, memory.sampled, strict=True)):
            return False
        params = [s.params for s in samplers]
        params += [params[0]] * (memory.asked.shape[1] - len(params))
        new, moved = DeviceSamplers(self._run, params, self._action.vocab), False
        for name, tensor in new.arguments().items():
            kept = memory.samplers.get(name)
            if kept is None or kept.numel() < tensor.numel():
                size = tensor.numel() if tensor.dim() > 1 else bucket(max(tensor.numel(), 16))
                memory.samplers[name] = kept = torch.zeros(
                    size, dtype=tensor.dtype, device=tensor.device
                )
                moved = True
            kept[: tensor.numel()] = tensor.view(-1)
        memory.sampled, memory.rejects = samplers, new.rejects
        memory.edits, memory.filters = new.edits, new.filters
        return moved

    def _prediction(self, ask: RowAsk) -> torch.Tensor | None:
        """The predicted text of a row on the device, kept while the row asks with
        the same."""
        if ask.prediction is None or len(ask.prediction) == 0:
            return None
        kept = self._predictions.get(ask.row)
        if kept is None or not torch.equal(kept[0], ask.prediction):
            text = self._run.send(ask.prediction.to(torch.int32))
            kept = self._predictions[ask.row] = (ask.prediction.clone(), text)
        return kept[1]

    def _execute(self, kind: Kind, memory: Memory) -> None:
        if self._graphs is None or kind not in self._graphs:  # the first time warms up
            if self._graphs is not None:
                self._graphs[kind] = None
            self._action.launch(kind, memory)
            return
        graph = self._graphs[kind]
        if graph is None:
            graph = self._run.capture(lambda: self._action.launch(kind, memory))
            self._graphs[kind] = graph
        graph()


def halves(address: int) -> tuple[int, int]:
    """A number of 64 bits as two int32 words in the order of memory."""
    low, high = address & 0xFFFFFFFF, address >> 32
    return low - (low >> 31 << 32), high
