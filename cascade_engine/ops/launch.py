"""Calls CUDA launchers with tensors: the extension's on a GPU, or those of the host emulation that
the tests build from the same sources."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch

from cascade_engine.errors import RequestError
from cascade_engine.gpu_kernels import triton_operation

ELEMENT = {torch.bfloat16: 1, torch.float16: 2}
"""Element types of csrc/include/ce/cuda_batch.h."""
STORE, ADD, SWIGLU, GEGLU, RELU, ROUND = range(6)
"""What `linear` does with its sums."""
EMULATED_MULTIPROCESSORS = 4
EMULATED_SHARED_LIMIT = 227 << 10


class Launcher:
    """The launchers of `module` on one device; the current torch stream is used."""

    def __init__(self, module: ModuleType, device: torch.device) -> None:
        self.module = module
        if device.type == "cuda" and device.index is None:
            # What is current differs from thread to thread: the one that makes it decides.
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.choices: dict[str, str] = {}
        """Of operations that Triton serves as well (ops/kernel_choice.py); what is not named is
        native."""
        self.multiprocessors = EMULATED_MULTIPROCESSORS
        self.shared_limit = EMULATED_SHARED_LIMIT
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            self.multiprocessors = properties.multi_processor_count
            self.shared_limit = getattr(properties, "shared_memory_per_block_optin", 48 << 10)
        self._capture_stream: torch.cuda.Stream | None = None

    def __call__(self, name: str, *args: Any, **arguments: Any) -> None:
        """Launches `name`; tensors become addresses, None becomes null."""
        launch = getattr(self.module, name)
        values = {key: self._value(value) for key, value in arguments.items()}
        positional = [self._value(value) for value in args]
        with self._current():
            launch(self._stream(), *positional, **values)

    def _stream(self) -> int:
        if self.device.type != "cuda":
            return 0
        return torch.cuda.current_stream(self.device).cuda_stream

    def _current(self) -> AbstractContextManager[object]:
        """A launch goes to the device that is current in the thread."""
        if self.device.type != "cuda":
            return nullcontext()
        return torch.cuda.device(self.device)

    def set_dependent(self, on: bool) -> None:
        """Whether kernels launched or captured from now on may start while the one in front of them
        ends (programmatic dependent launch). Raises RequestError for a GPU that has no such
        thing."""
        if on and self.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(self.device)
            if major < 9:
                raise RequestError(
                    "dependent launches need compute capability 9.0 or newer, this is "
                    f"{major}.{minor}; leave them off"
                )
        self.module.set_dependent_launch(on)

    def triton(self, name: str, **arguments: Any) -> None:
        """Launches Triton's implementation of `name`, with the arguments of the native one."""
        with self._current():
            triton_operation(name)(**arguments)

    @property
    def captures(self) -> bool:
        """Whether launches can be captured."""
        return self.device.type == "cuda"

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        """A CUDA graph of what `work` puts on the stream, which does not run yet: a call of the
        result replays it over the same memory. Other threads may use the GPU meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with self._current():
            if self._capture_stream is None:  # torch's own is on the first device that captures
                self._capture_stream = torch.cuda.Stream(self.device)
            stream = self._capture_stream
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                work()
        return graph.replay

    def staging(self, *shape: int, dtype: torch.dtype) -> torch.Tensor:
        """Host memory that copies to and from the device need not wait for."""
        return torch.zeros(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the device, made in the order of the launches by way of staging memory: the
        host need not wait for it and may change `tensor` at once."""
        if self.device.type != "cuda":
            return tensor.to(self.device, copy=True)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def upload(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copies from staging memory in the order of the launches; the source must stay as it is
        until `wait`."""
        target.copy_(source, non_blocking=True)

    def download(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copies to staging memory in the order of the launches; it is there after `wait`."""
        target.copy_(source, non_blocking=True)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the host, which waits for all that was launched; what is there already is
        given back."""
        return tensor.cpu()

    def wait(self) -> None:
        """Until all is done that was launched."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _value(self, value: Any) -> Any:
        if value is None:
            return 0
        if isinstance(value, torch.Tensor):
            if value.device.type != self.device.type:
                raise ValueError(f"a tensor is on {value.device}, the kernels are on {self.device}")
            return value.data_ptr()
        if isinstance(value, dict):
            return {key: self._value(part) for key, part in value.items()}
        if isinstance(value, list):
            return [self._value(part) for part in value]
        return value


def pack_tiles(weight: torch.Tensor, outputs: int, step: int) -> torch.Tensor:
    """`[n, k]` in the order of LinearArgs, padded to multiples of `outputs` and `step`:
    `[n / 16, k / 16, 32, 8]`."""
    n, k = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -k % step, 0, -n % outputs))
    # output = 16 tile + 8 half + g, k = 16 step + 8 k_half + 2 q + e
    split = padded.view(padded.shape[0] // 16, 2, 8, padded.shape[1] // 16, 2, 4, 2)
    ordered = split.permute(0, 3, 2, 5, 4, 1, 6)  # tile, step, g, q, k_half, half, e
    return ordered.reshape(ordered.shape[0], ordered.shape[1], 32, 8).contiguous()


def unpack_tiles(packed: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """The dense `[n, k]` matrix."""
    tiles, steps = packed.shape[:2]
    split = packed.view(tiles, steps, 8, 4, 2, 2, 2)
    return split.permute(0, 5, 2, 1, 4, 3, 6).reshape(16 * tiles, 16 * steps)[:n, :k]
