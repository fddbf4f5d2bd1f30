"""Who is measured side by side: the engine's forward passes, and transformers' on the same weights.

All of them hold one row of a given context and offer `step` (one pass over k more tokens, logits
for each, forgotten again), `prefill`, and `logits`, by which they are compared before they are
timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from cascade_engine import Engine, PlainDecoding, SamplingParams
from cascade_engine.errors import CascadeError

PREFILL = 512
MAX_STEP = 64
DTYPE_NAMES = {"bf16": "bfloat16", "f32": "float32", "int8": "int8"}
AGREEMENT_TOKENS = (48, 16)
"""Tokens of the comparison: fed first, then reviewed."""
TOLERANCE = {"bf16": 0.04, "f32": 1e-3, "int8": 0.15}
"""Norm of the difference of all logits over the norm of the peer's."""


class Peer(Protocol):
    """One row of `context` tokens."""

    def step(self, tokens: int) -> object:
        """One pass over `tokens` tokens behind the context, with logits for each."""

    def prefill(self) -> object:
        """A prompt of PREFILL tokens in an empty cache, with the last one's logits."""

    def logits(self, tokens: Sequence[int], wanted: int) -> torch.Tensor:
        """float32 `[wanted, vocab]` of the last `wanted` of `tokens`, which are reviewed in one
        pass behind the others."""


class PeerDisagreement(CascadeError):
    """A peer computes another model, so that its time means nothing."""


def check_agreement(ours: Peer, peer: Peer, name: str, vocab: int, tolerance: float) -> float:
    """The relative difference of the peer's logits from ours. Raises PeerDisagreement above
    `tolerance`."""
    fed, reviewed = AGREEMENT_TOKENS
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, vocab, (fed + reviewed,), generator=generator).tolist()
    expected = peer.logits(tokens, reviewed)
    found = ours.logits(tokens, reviewed)[:, : expected.shape[1]]
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= tolerance:
        raise PeerDisagreement(
            f"{name}'s logits differ from ours by {difference:.3g} of their norm, more than "
            f"{tolerance}: it runs another model, and its times mean nothing"
        )
    return difference


class Ours:
    """Forward passes of the engine's target level. `dtype` is the engine's name of it, `compress`
    as in `Engine.load`."""

    def __init__(
        self,
        target: Path,
        dtype: str,
        threads: int,
        context: int,
        compress: bool | str = "auto",
    ) -> None:
        self.context = context
        self.engine = Engine.load(
            target,
            dtype=dtype,
            threads=threads,
            policy=PlainDecoding(),
            max_rows=1,
            max_context=max(context + MAX_STEP, PREFILL) + 1,
            compress_weights=compress,
        )
        self.level = self.engine.neural[0]
        self.vocab = self.level.vocab_size
        tokens = torch.randint(0, self.vocab, (self.level.rows.capacity,)).tolist()
        self.level.rows.write(0, tokens)
        self.level.prefill(0, context)

    @property
    def compressed(self) -> bool:
        head: torch.Tensor = self.level.weights.head.memory
        return head.dtype == torch.uint8

    def step(self, tokens: int) -> None:
        self.level.truncate(0, self.context)
        self.level._feed([0], [self.context + tokens], [tokens])

    def tree(self, nodes: int) -> None:
        """A step over a tree of so many nodes, two children to each, instead of a chain."""
        self.level.truncate(0, self.context)
        parents = [-1, *((node - 1) // 2 for node in range(1, nodes))]
        end = self.context + nodes
        self.level._feed([0], [end], [nodes], end, [(list(range(3, 3 + nodes)), parents)])

    def prefill(self) -> None:
        self.level.truncate(0, 0)
        self.level._feed([0], [PREFILL], [1])
        self.level.truncate(0, 0)

    def logits(self, tokens: Sequence[int], wanted: int) -> torch.Tensor:
        self.level.truncate(0, 0)
        self.level.rows.write(0, list(tokens))
        self.level.prefill(0, len(tokens) - wanted)
        found = self.level.score(0, len(tokens), wanted)
        self.level.truncate(0, 0)
        self.level.prefill(0, self.context)
        return found

    def bytes_per_step(self) -> int:
        """Weights, and keys and values of the context: what one decoding step must read."""
        config = self.level.weights.config
        cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        itemsize = self.level.storage.data.element_size()
        return self.level.weights.num_bytes() + cache * self.context * itemsize

    def outside_native(self, tokens: int, repeats: int) -> dict[str, float]:
        """Share of plain decoding's wall time not spent in the forward pass and in sampling."""
        runs = [self._outside_native(tokens) for _ in range(repeats)]
        shares, seconds = zip(*runs, strict=True)
        return {
            "share": statistics.median(shares),
            "seconds_per_token": statistics.median(seconds),
        }

    def _outside_native(self, tokens: int) -> tuple[float, float]:
        native = [0.0]
        backend, program = self.level.backend, self.level._program

        def timed(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                begin = time.perf_counter()
                result = function(*args, **kwargs)
                native[0] += time.perf_counter() - begin
                return result

            return call

        class Timed:
            run = staticmethod(timed(program.run))

            def __getattr__(self, name: str) -> Any:
                return getattr(program, name)

        self.engine.clear_cache()
        self.level.truncate(0, 0)
        params = SamplingParams(max_tokens=tokens, ignore_eos=True)
        accept = backend.accept
        try:
            self.level._program = Timed()
            backend.accept = timed(accept)  # type: ignore[method-assign]
            stats = self.engine.generate([list(range(3, 19))], params)[0].stats
        finally:
            self.level._program = program
            backend.accept = accept  # type: ignore[method-assign]
        return 1 - native[0] / stats.seconds, stats.seconds / tokens


class Transformers:
    """Hugging Face transformers with its dynamic cache."""

    def __init__(self, target: Path, dtype: torch.dtype, threads: int, context: int) -> None:
        import transformers

        torch.set_num_threads(threads)
        self._new_cache = transformers.DynamicCache
        self.model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=dtype).eval()
        self.facts = {
            "version": transformers.__version__,
            "weights": str(dtype).removeprefix("torch."),
            "cache": str(dtype).removeprefix("torch."),
        }
        self.vocab = self.model.config.vocab_size
        self.cache = self._new_cache(config=self.model.config)
        with torch.inference_mode():
            self._pass(self._ids(context), self.cache)

    def _ids(self, count: int) -> torch.Tensor:
        return torch.randint(0, self.vocab, (1, count))

    def _pass(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
        return self.model(ids, past_key_values=cache, use_cache=True).logits

    def step(self, tokens: int) -> None:
        with torch.inference_mode():
            self._pass(self._ids(tokens), self.cache)
            self.cache.crop(-tokens)

    def prefill(self) -> None:
        with torch.inference_mode():
            self.model(self._ids(PREFILL), use_cache=True, logits_to_keep=1)

    def logits(self, tokens: Sequence[int], wanted: int) -> torch.Tensor:
        cache = self._new_cache(config=self.model.config)
        ids = torch.tensor([list(tokens)])
        with torch.inference_mode():
            self._pass(ids[:, :-wanted], cache)
            return self._pass(ids[:, -wanted:], cache)[0].float()
