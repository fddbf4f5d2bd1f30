"""`python -m cascade_engine.info`: what models hold, what they cost here, what a draft can gain."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.console import say, table
from cascade_engine.engine.loading import DTYPES, STORED_DTYPES, LoadOptions
from cascade_engine.errors import CascadeError, RequestError, VocabularyMismatch
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import LlamaConfig, load_config
from cascade_engine.models.cost import ModelCost, predicted_seconds
from cascade_engine.ops import CpuBackend, ceilings
from cascade_engine.policy import expected
from cascade_engine.tokenizer import Tokenizer, check_same_vocabulary

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
ACCEPTANCE = (0.5, 0.6, 0.7, 0.8, 0.9)
MAX_DRAFT = 16
# The cascade that the gain of a draft with the statistical level below it is shown for.
INNER_ACCEPTANCE = 0.5
INNER_DRAFT = 10

HOW = {
    "counted": "from config.json and the headers of the weight files",
    "measured": "on this machine, just now, at its present load; the best of some runs",
    "predicted": "the larger of bytes / read bandwidth and multiply-adds / rate: a lower bound",
    "expected": "from the formulas below, if every token is kept with the same chance a",
}
FORMULAS = (
    "tokens = (1 - a^(d+1)) / (1 - a), d tokens drafted (arXiv 2211.17192)",
    "EWIF = tokens / (d c + 1), c the cost ratio (there, and in arXiv 2312.11462)",
    "here = tokens / (d c + r), r the predicted cost of a review of d + 1 tokens",
    f"cascade = the draft reviews {INNER_DRAFT}-token drafts that cost nothing and keeps each token "
    f"with a chance of {INNER_ACCEPTANCE} (assumed): (1 - a g(a)^n) / (1 - a) tokens, "
    "g(x) = 1 + (x-1) (1 - (bx)^(k+1)) / (1 - bx) (appendix of arXiv 2312.11462)",
)

EPILOG = """\
examples:
  python -m cascade_engine.info DIR
  python -m cascade_engine.info TARGET DRAFT --dtype bfloat16 --json

No weight is read. exit codes: 0 done; 2 an error, explained in one line; 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m cascade_engine.info",
        description="What models hold, what they cost on this machine, what a draft can gain.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("directories", metavar="DIR", nargs="+", help="the target, then its drafts")
    p.add_argument("--dtype", default="auto", help="auto, float32 or bfloat16")
    p.add_argument("--threads", type=int, help="default: CASCADE_THREADS or all cores")
    p.add_argument("--cached", type=int, metavar="N", help="tokens in the cache (default: 512)")
    p.add_argument("--json", action="store_true", help="the same as JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        report = collect(args.directories, args.dtype, args.threads, args.cached)
    except (CascadeError, OSError) as error:
        say(f"error: {error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0


@dataclass(frozen=True)
class _Model:
    name: str
    config: LlamaConfig
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    cost: ModelCost

    @classmethod
    def open(cls, path: str, dtype: str) -> _Model:
        """Checks the headers against the configuration, and reads nothing else."""
        directory = Path(path)
        config, checkpoint = load_config(directory), Checkpoint.open(directory)
        shapes = config.tensor_shapes()
        for name, source in config.tied_tensors().items():
            if name in checkpoint.entries:
                shapes[name] = shapes[source]
        checkpoint.expect(shapes)
        stored = config.dtype or STORED_DTYPES[next(iter(checkpoint.bytes_by_dtype()))]
        chosen = stored if stored in DTYPES.values() else torch.float32
        chosen = chosen if dtype == "auto" else DTYPES[dtype]
        cost = ModelCost(config, chosen, ceilings.packed_bytes)
        tokenizer = Tokenizer.load(directory)
        return cls(directory.resolve().name, config, checkpoint, tokenizer, chosen, cost)

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "directory": str(self.checkpoint.directory),
            "parameters": self.cost.parameters,
            "file_bytes": self.checkpoint.bytes_by_dtype(),
            "dtype": str(self.dtype).removeprefix("torch."),
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
    LoadOptions(dtype=dtype, threads=threads)
    if cached is not None and cached < 0:
        raise RequestError(f"--cached must be >= 0, got {cached}")
    models = [_Model.open(path, dtype) for path in directories]
    shortest = min(model.config.max_positions for model in models)
    cached = min(512, max(0, shortest - max(WIDTHS))) if cached is None else cached
    backend = CpuBackend(threads)
    machine = _measure(backend, {model.dtype for model in models})
    facts = []
    for model in models:
        rate = machine["multiply_adds_per_second"][str(model.dtype).removeprefix("torch.")]
        passes = _passes(model.cost, cached, machine["read_bytes_per_second"]["rate"], rate["rate"])
        facts.append({**model.facts(), "passes": passes})
    target = facts[0]["passes"]
    drafts = [
        _draft(models[0], model, facts[i]["passes"], target)
        for i, model in enumerate(models)
        if i
    ]
    return {
        "how": HOW,
        "machine": machine,
        "cached_tokens": cached,
        "models": facts,
        "statistical": {"cost_ratio": 0.0, "gain": _gains(0.0, target)},
        "drafts": drafts,
        "memory": _memory(models),
    }


def _measure(backend: CpuBackend, dtypes: set[torch.dtype]) -> dict[str, Any]:
    room = max(1 << 20, min(ceilings.READ_BYTES, available_memory() // 4))
    rates = {
        str(dtype).removeprefix("torch."): ceilings.multiply_rate(backend, dtype)._asdict()
        for dtype in sorted(dtypes, key=str)
    }
    return {
        "isa": backend.isa,
        "threads": backend.context.threads,
        "read_bytes_per_second": ceilings.read_bandwidth(backend, room)._asdict(),
        "multiply_adds_per_second": rates,
    }


def _passes(cost: ModelCost, cached: int, bandwidth: float, rate: float) -> list[dict[str, Any]]:
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
