"""The cases of bench.e2e: our settings and the peers that are asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.generation import Generator, Ours, Transformers
from bench.llamacpp import write_gguf
from bench.shapes import DTYPES
from cascade_engine import AutoCascade, Engine, FixedCascade, PlainDecoding
from cascade_engine.errors import RequestError
from cascade_engine.models.family import open_model
from cascade_engine.policy import Policy, read_policy

PEERS = {
    "hf": ("transformers",),
    "hf-assisted": ("transformers",),
    "hf-prompt-lookup": ("transformers",),
    "llamacpp": ("llama_cpp", "gguf"),
    "llamacpp-draft": ("llama_cpp", "gguf"),
}
"""By name: the modules that they need."""
SETTINGS = ("tree", "siblings", "lenience", "min_confidence")
PROMPT_ROOM = 512
"""Tokens of a prompt at most, in what peers reserve."""


class Models(NamedTuple):
    """What is run, and how."""

    target: Path
    drafts: tuple[Path, ...]
    table: str | Path | None
    k_matrix: tuple[tuple[int, ...], ...] | None
    """Of the setting "fixed"; None: the engine's default."""
    dtype: str
    threads: int
    rows: int
    """At most, in one group."""
    limit: int
    """New tokens of an answer at most."""
    stops: Sequence[int]
    """Tokens that end one; none: all have `limit` tokens."""

    @property
    def context(self) -> int:
        return min(PROMPT_ROOM + self.limit, open_model(self.target)[0].max_positions)


class Setting(NamedTuple):
    name: str
    policy: Policy


def settings_of(names: Sequence[str], grid: bool, models: Models) -> list[Setting]:
    """Plain decoding and what is named ("fixed" and "auto" where nothing is); with `grid` twelve
    fixed settings."""
    found = [Setting("plain", PlainDecoding())]
    found += [parse_setting(name, models) for name in names or ("fixed", "auto")]
    if grid:
        found += [parse_setting(name, models) for name in grid_of(len(models.drafts) + 1)]
    if len({setting.name for setting in found}) < len(found):
        raise RequestError("a setting is named twice")
    return found


def parse_setting(text: str, models: Models) -> Setting:
    """Raises RequestError for what is no setting."""
    levels = len(models.drafts) + 1
    if text == "fixed":
        matrix = models.k_matrix or FixedCascade.default(levels).k_matrix
        return Setting(text, FixedCascade(matrix))
    if text == "auto":
        return Setting(text, AutoCascade(cache=None))
    if text.endswith(".json"):
        names = [path.resolve().name for path in (models.target, *models.drafts)]
        return Setting(text, read_policy(text, names))
    matrix_text, *options = text.split()
    values: dict[str, float] = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in SETTINGS:
            raise RequestError(f"setting {text!r}: {key!r} is none of {', '.join(SETTINGS)}")
        try:
            values[key] = float(value)
        except ValueError:
            raise RequestError(f"setting {text!r}: {key} needs a number, got {value!r}") from None
    policy = FixedCascade.parse(
        matrix_text,
        values.get("lenience", 1.0),
        int(values.get("tree", 0)),
        int(values.get("siblings", 0)),
        values.get("min_confidence", 0.0),
    )
    policy.check(levels)
    return Setting(text, policy)


def grid_of(levels: int) -> list[str]:
    """Twelve fixed settings: the statistical level alone, chains and trees, and below the first
    draft where there is one."""
    if levels == 1:
        chains = [str(k) for k in (2, 3, 4, 6, 8, 10, 14)]
        return chains + [f"10 tree={nodes}" for nodes in (8, 16, 24, 32, 64)]

    def matrix(first: Sequence[int], last: int, inner: int = 0) -> str:
        """Level 0 uses the first draft and the statistical level, `first`; drafts use the last."""
        rows = [[0] * levels for _ in range(levels)]
        rows[0][0], rows[0][-1] = first
        for row in rows[1:]:
            row[-1] = inner
        rows[-1][-1] = last
        return ";".join(",".join(map(str, row)) for row in rows)

    chains = [(3, 0, 6), (4, 0, 8), (6, 0, 8), (8, 0, 10), (12, 0, 10)]
    found = [matrix((k, 0), last, last) for k, _, last in chains]
    found += [matrix((k, 0), 0) for k in (3, 6)]  # the draft token by token
    found += [matrix((0, k), k) for k in (4, 10)]  # the statistical level alone
    found += [matrix((5, 8), 8, 8)]
    found += [f"{matrix((6, 0), 8, 8)} tree=16 siblings=2", f"{matrix((0, 0), 10)} tree=32"]
    return found


def open_ours(models: Models, settings: Sequence[Setting]) -> dict[str, Generator]:
    """A case for each setting, all on one engine: what a policy has learnt stays with it."""
    engine = Engine.load(
        models.target,
        models.drafts,
        models.table,
        dtype=str(DTYPES[models.dtype]).removeprefix("torch."),
        threads=models.threads,
        max_rows=models.rows,
        max_context=models.context,
        reuse_cache=False,
    )
    ignore_eos = not models.stops
    return {name: Ours(engine, policy, models.limit, ignore_eos) for name, policy in settings}


def open_peers(
    names: Sequence[str], models: Models, scratch: Path, stack: ExitStack
) -> tuple[dict[str, Generator], dict[str, Any], dict[str, str]]:
    """The peers that can run, facts of them, and why others cannot."""
    skipped = {name: reason for name in names if (reason := _obstacle(name, models))}
    wanted = [name for name in names if name not in skipped]
    cases: dict[str, Generator] = {}
    facts: dict[str, Any] = {}
    torch.set_num_threads(models.threads)
    if any(name.startswith("hf") for name in wanted):
        draft = models.drafts[-1] if models.drafts else None
        hf = Transformers(models.target, draft, DTYPES[models.dtype], models.limit, models.stops)
        runs = {"hf": hf.plain, "hf-assisted": hf.assisted, "hf-prompt-lookup": hf.prompt_lookup}
        cases |= {name: run for name, run in runs.items() if name in wanted}
        facts["hf"] = hf.facts
    if any(name.startswith("llamacpp") for name in wanted):
        found = _llamacpp(wanted, models, scratch, stack)
        cases |= found
        import llama_cpp

        facts["llamacpp"] = {"version": llama_cpp.__version__, "weights": models.dtype}
    return {name: cases[name] for name in wanted}, facts, skipped


def _obstacle(name: str, models: Models) -> str | None:
    """Why a peer cannot run, None where it can."""
    for module in PEERS[name]:
        if importlib.util.find_spec(module) is None:
            return f"not installed ({module}; pip install 'cascade_engine[bench]')"
    if name == "hf-assisted" and not models.drafts:
        return "needs a draft"
    return None


def _llamacpp(
    wanted: Sequence[str], models: Models, scratch: Path, stack: ExitStack
) -> dict[str, Generator]:
    from bench.llamacpp_generation import Batched, Drafting

    def written(directory: Path, name: str) -> Path:
        path = scratch / f"{name}.gguf"
        write_gguf(directory, path, models.dtype)
        return path

    target = written(models.target, "target")
    sizes = models.context, models.limit, models.stops
    cases: dict[str, Generator] = {}
    if "llamacpp" in wanted:
        batched = Batched(target, models.dtype, models.threads, models.rows, *sizes)
        stack.callback(batched.close)
        cases["llamacpp"] = batched
    if "llamacpp-draft" in wanted:
        draft = written(models.drafts[-1], "draft") if models.drafts else None
        cases["llamacpp-draft"] = Drafting(target, draft, models.dtype, models.threads, *sizes)
    return cases
