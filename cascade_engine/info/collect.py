"""The figures: counted from headers, measured on this machine, predicted from both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade_engine.build_info import build_info
from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.engine.opening import STORED_DTYPES
from cascade_engine.engine.options import DEVICE_DTYPES, DTYPES, LoadOptions
from cascade_engine.errors import RequestError, VocabularyMismatch
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import ModelConfig
from cascade_engine.models.cost import ModelCost, predicted_seconds
from cascade_engine.models.family import model_cost, open_model
from cascade_engine.models.t5_cost import T5Cost
from cascade_engine.ops import CpuBackend, ceilings
from cascade_engine.policy import expected
from cascade_engine.tokenizer import Tokenizer, check_same_vocabulary

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
ACCEPTANCE = (0.5, 0.6, 0.7, 0.8, 0.9)
MAX_DRAFT = 16
# The cascade that the gain of a draft with the statistical level below it is shown for.
INNER_ACCEPTANCE = 0.5
INNER_DRAFT = 10

HOW = {
    "counted": "from config.json and the headers of the weight files",
    "measured": "on this machine, just now, at its present load; the best of some runs",
    "predicted": "the larger of bytes / read bandwidth and multiply-adds / rate: a lower bound, "
    "far below the truth for models of a few MB",
    "expected": "from the formulas below, if every token is kept with the same chance a",
}
FORMULAS = (
    "tokens = (1 - a^(d+1)) / (1 - a), d tokens drafted (arXiv 2211.17192)",
    "EWIF = tokens / (d c + 1), c the cost ratio (there, and in arXiv 2312.11462)",
    "here = tokens / (d c + r), r the predicted cost of a review of d + 1 tokens",
    "EWIF of a cascade = (1 - a g(a)^n) / ((1 - a) (1 + n c)), at the best n: the draft writes by "
    f"reviewing {INNER_DRAFT} tokens n times, which cost nothing and of which it keeps each with "
    f"chance b = {INNER_ACCEPTANCE} (an assumption); c is the cost of such a review here, and "
    f"g(x) = 1 + (x - 1) (1 - (b x)^{INNER_DRAFT + 1}) / (1 - b x) (arXiv 2312.11462, appendix)",
)


@dataclass(frozen=True)
class _Model:
    name: str
    config: ModelConfig
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    compressed: bool
    cost: ModelCost | T5Cost

    @classmethod
    def open(cls, path: str, options: LoadOptions, backend: CpuBackend) -> _Model:
        """Checks the headers against the configuration, and reads nothing else."""
        directory = Path(path)
        config, checkpoint = open_model(directory)
        shapes = config.tensor_shapes()
        for name, source in config.tied_tensors().items():
            if name in checkpoint.entries:
                shapes[name] = shapes[source]
        checkpoint.expect(shapes)
        stored = config.dtype or STORED_DTYPES[next(iter(checkpoint.bytes_by_dtype()))]
        supported = [DTYPES[name] for name in DEVICE_DTYPES["cpu"]]
        chosen = stored if stored in supported else torch.float32
        chosen = chosen if options.dtype == "auto" else DTYPES[options.dtype]
        name = directory.resolve().name
        compressed = options.compresses(name, chosen, checkpoint, backend)
        packed_bytes = ceilings.compressed_bytes if compressed else ceilings.packed_bytes
        cost = model_cost(config, chosen, packed_bytes)
        tokenizer = Tokenizer.load(directory)
        return cls(name, config, checkpoint, tokenizer, chosen, compressed, cost)

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "directory": str(self.checkpoint.directory),
            "parameters": self.cost.parameters,
            "file_bytes": self.checkpoint.bytes_by_dtype(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "compressed": self.compressed,
            "loaded_bytes": self.cost.weight_bytes,
            "context": self.config.max_positions,
            "cache_bytes_per_token": self.cost.cache_bytes_per_token,
            "cache_bytes_full": self.cost.cache_bytes_per_token * self.cache_tokens(),
        }

    def cache_tokens(self) -> int:
        return pages_for(self.config.max_positions) * PAGE_TOKENS


def collect(
    directories: Sequence[str],
    dtype: str = "auto",
    threads: int | None = None,
    cached: int | None = None,
) -> dict[str, Any]:
    """All figures, JSON-ready: the first directory is the target. Raises as `Engine.load`."""
    options = LoadOptions(dtype=dtype, threads=threads)
    if cached is not None and cached < 0:
        raise RequestError(f"--cached must be >= 0, got {cached}")
    backend = CpuBackend(threads)
    models = [_Model.open(path, options, backend) for path in directories]
    shortest = min(model.config.max_positions for model in models)
    cached = min(512, max(0, shortest - max(WIDTHS))) if cached is None else cached
    rates = {dtype: ceilings.multiply_rate(backend, dtype) for dtype in {m.dtype for m in models}}
    facts = []
    for model in models:
        read, rate = ceilings.read_bandwidth(backend, _sample_bytes(model)), rates[model.dtype]
        passes = _passes(model.cost, cached, read.rate, rate.rate)
        ceiling = {"read_bytes": read._asdict(), "multiply_adds": rate._asdict()}
        facts.append({**model.facts(), "per_second": ceiling, "passes": passes})
    target = facts[0]["passes"]
    drafts = [
        _draft(models[0], model, facts[i]["passes"], target) for i, model in enumerate(models) if i
    ]
    return {
        "how": HOW,
        "formulas": list(FORMULAS),
        "machine": {"isa": backend.isa, "threads": backend.context.threads},
        "gpu_operations": build_info()["gpu_operations"],
        "cached_tokens": cached,
        "models": facts,
        "statistical": {"cost_ratio": 0.0, "gain": _gains(0.0, target)},
        "drafts": drafts,
        "memory": _memory(models),
    }


def _sample_bytes(model: _Model) -> int:
    """As much memory as the model's weights take, up to a size that no cache holds: a small model
    stays in the caches and is read faster."""
    most = max(1 << 20, min(ceilings.READ_BYTES, available_memory() // 4))
    return min(model.cost.weight_bytes, most)


def _passes(
    cost: ModelCost | T5Cost, cached: int, bandwidth: float, rate: float
) -> list[dict[str, Any]]:
    """Passes over 1..64 tokens, and every width that the expected gain asks for."""
    passes = []
    for tokens in sorted({*WIDTHS, *range(1, MAX_DRAFT + 2), INNER_DRAFT + 1}):
        one = cost.decode(tokens, cached)
        passes.append(
            {
                "tokens": tokens,
                "flops": 2 * one.multiply_adds,
                "bytes": one.bytes,
                "seconds": predicted_seconds(one, bandwidth, rate),
            }
        )
    return passes


def _draft(
    target: _Model, draft: _Model, own: list[dict[str, Any]], passes: list[dict[str, Any]]
) -> dict[str, Any]:
    try:
        rows = target.config.vocab_size, draft.config.vocab_size
        check_same_vocabulary(target.tokenizer, draft.tokenizer, *rows)
        problem = None
    except VocabularyMismatch as error:
        problem = str(error)
    ratio = _seconds(own, 1) / _seconds(passes, 1)
    inner = _seconds(own, INNER_DRAFT + 1) / _seconds(passes, 1)
    return {
        "name": draft.name,
        "vocabulary_problem": problem,
        "cost_ratio": ratio,
        "gain": _gains(ratio, passes, inner),
    }


def _gains(
    ratio: float, passes: list[dict[str, Any]], inner_ratio: float | None = None
) -> list[dict[str, Any]]:
    """For each acceptance rate, the draft length that is best here and what it gains."""
    gains = []
    for a in ACCEPTANCE:
        here = {d: _here(a, d, ratio, passes) for d in range(1, MAX_DRAFT + 1)}
        best = max(here, key=lambda d: here[d])
        gain = {
            "acceptance": a,
            "drafted": best,
            "tokens_per_pass": expected.expected_tokens(a, best),
            "ewif": expected.walltime_improvement(a, best, ratio),
            "here": here[best],
        }
        if inner_ratio is not None:
            options = (a, INNER_ACCEPTANCE, INNER_DRAFT)
            gain["cascade"] = max(
                expected.cascade_improvement(options[0], n, *options[1:], inner_ratio)
                for n in range(1, MAX_DRAFT + 1)
            )
        gains.append(gain)
    return gains


def _here(acceptance: float, drafted: int, ratio: float, passes: list[dict[str, Any]]) -> float:
    review = _seconds(passes, drafted + 1) / _seconds(passes, 1)
    return expected.walltime_improvement(acceptance, drafted, ratio, review)


def _seconds(passes: list[dict[str, Any]], tokens: int) -> float:
    return float(next(one["seconds"] for one in passes if one["tokens"] == tokens))


def _memory(models: Sequence[_Model]) -> dict[str, Any]:
    """Weights of all models, and the cache of one row as long as the target's context."""
    tokens = models[0].cache_tokens()
    weights = sum(model.cost.weight_bytes for model in models)
    cache = tokens * sum(model.cost.cache_bytes_per_token for model in models)
    available = available_memory()
    return {
        "weight_bytes": weights,
        "cache_bytes": cache,
        "available_bytes": available,
        "fits": weights + cache <= available,
    }


def available_memory() -> int:
    """Bytes that this process could still take: the system's, or its container's if less."""
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf(pages)]
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = [int(line.split()[1]) * 1024]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal():
        free.append(int(limit[0]) - int(used[0]))
    return max(0, min(free))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
