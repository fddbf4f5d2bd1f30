"""From directories to levels: what `Engine.load` does before there is an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from cascade_engine.cache import PAGE_TOKENS, pages_for
from cascade_engine.engine.opening import (
    OpenedModel,
    opened,
    shared_decoder_start,
    shared_vocabulary,
)
from cascade_engine.engine.options import UNUSED, LoadOptions
from cascade_engine.engine.self_draft import is_self_draft, self_draft_layers, self_draft_level
from cascade_engine.errors import CapacityError, RequestError
from cascade_engine.levels import (
    DrafterLevel,
    EncoderDecoderLevel,
    NeuralLevel,
    StatisticalLevel,
    TokenRows,
)
from cascade_engine.models.config import ModelConfig
from cascade_engine.models.family import ModelWeights, load_weights, open_model
from cascade_engine.models.t5 import T5Weights
from cascade_engine.models.t5_config import T5Config
from cascade_engine.ops import CpuBackend, CudaBackend, NgramTable
from cascade_engine.tables import load_table, prebuilt_for
from cascade_engine.tokenizer import Tokenizer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LoadReport:
    """What was loaded; `lines` are for people."""

    lines: tuple[str, ...]
    weight_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class Loaded:
    neural: list[NeuralLevel]
    statistical: StatisticalLevel
    rows: TokenRows
    tokenizer: Tokenizer | None
    eos_ids: tuple[int, ...]
    report: LoadReport
    directory: Path
    """The target's."""
    decoder_start: int | None
    """Of an encoder-decoder: the first token that its decoder reads."""


def load_levels(
    target: str | PathLike[str],
    drafts: Sequence[str | PathLike[str]],
    table: str | PathLike[str] | None,
    options: LoadOptions,
    progress: Progress | None,
) -> Loaded:
    """Opens and checks everything before any weight is packed, then loads the levels."""
    if isinstance(drafts, (str, PathLike)):
        raise RequestError(f"drafts must be a list, got {str(drafts)!r}: put it into [ ]")
    backend = make_backend(options)
    others = [draft for draft in drafts if not is_self_draft(draft)]
    models = [opened(path, options) for path in (target, *others)]
    layers = [
        self_draft_layers(str(draft), models[0].name, models[0].config)
        for draft in drafts
        if is_self_draft(draft)
    ]
    decoder_start = shared_decoder_start(models)
    vocab_size = shared_vocabulary(models)
    tokenizer = models[0].tokenizer
    ngrams = _ngram_table(table, tokenizer, vocab_size, options)
    compressed = [options.compresses(m.name, m.dtype, m.checkpoint, backend) for m in models]
    context = _context(models[0].config, options.max_context)
    tokens = _cache_tokens(models, context, options)

    rows = TokenRows(options.max_rows, context, vocab_size, backend)
    last = _last_level(backend, rows, ngrams, vocab_size, options)
    neural: list[NeuralLevel] = []
    lines = []
    for model, compress in zip(models, compressed, strict=True):
        report = None if progress is None else _per_model(progress, model.name)
        weights = load_weights(
            model.checkpoint, model.config, backend, model.dtype, report, compress
        )
        lines.append(_described(model, weights, compress, backend))
        neural.append(_level(model, weights, backend, rows, context, tokens, vocab_size, options))
    weight_bytes = sum(level.weights.num_bytes() for level in neural)
    for at, draft in enumerate(drafts, 1):
        if is_self_draft(draft):
            neural.insert(at, self_draft_level(neural[0], layers.pop(0), backend, tokens))
            lines.append(f"{draft}: layers of {models[0].name}, no memory of its own")
    cache_bytes = tokens * sum(model.cache_bytes_per_token() for model in models)
    return Loaded(
        neural,
        last,
        rows,
        tokenizer,
        models[0].config.eos_ids,
        LoadReport(tuple(lines), weight_bytes, cache_bytes),
        models[0].directory,
        decoder_start,
    )


def _described(
    model: OpenedModel, weights: ModelWeights, compressed: bool, backend: CpuBackend | CudaBackend
) -> str:
    """A model's line of the report."""
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{model.name}: {weights.num_bytes() / 1e6:.1f} MB, {'compressed ' * compressed}"
        f"{dtype}{model.note}, {backend.isa}, {backend.context.threads} threads"
    )


def _level(
    model: OpenedModel,
    weights: ModelWeights,
    backend: CpuBackend | CudaBackend,
    rows: TokenRows,
    context: int,
    tokens: int,
    vocab_size: int,
    options: LoadOptions,
) -> NeuralLevel:
    left_padded = options.padding == "left"
    sizes = _context(model.config, context), tokens, vocab_size, left_padded
    if isinstance(weights, T5Weights):
        return EncoderDecoderLevel(model.name, weights, backend, rows, *sizes)
    return NeuralLevel(model.name, weights, backend, rows, *sizes)


def _last_level(
    backend: CpuBackend | CudaBackend,
    rows: TokenRows,
    table: NgramTable | None,
    vocab_size: int,
    options: LoadOptions,
) -> StatisticalLevel:
    if options.drafter is None:
        return StatisticalLevel(backend, rows, table, options.learn_tokens)
    given = options.drafter, vocab_size, options.drafter_fallback, table, options.learn_tokens
    return DrafterLevel(backend, rows, *given)


def _ngram_table(
    table: str | PathLike[str] | None,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    options: LoadOptions,
) -> NgramTable | None:
    """The table asked for; for None the tokenizer's prebuilt one, if the models know all of its
    tokens; none for "none", and where a drafter stands in for the statistics."""
    if options.drafter is not None and not options.drafter_fallback:
        if table not in (None, "none"):
            raise RequestError(UNUSED.format(f"tables={str(table)!r}"))
        return None
    path = prebuilt_for(tokenizer, vocab_size) if table is None else table
    return None if path is None or path == "none" else load_table(path, tokenizer, vocab_size)


def make_backend(options: LoadOptions) -> CpuBackend | CudaBackend:
    """Raises RequestError, with the way out, where there is no GPU for it."""
    if options.place == "cuda":
        return CudaBackend(threads=options.threads)
    return CpuBackend(options.threads)


def load_model(path: str | PathLike[str], backend: CpuBackend, dtype: torch.dtype) -> ModelWeights:
    """The weights in one directory, checked and packed."""
    config, checkpoint = open_model(Path(path))
    return load_weights(checkpoint, config, backend, dtype)


def _per_model(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)


def _context(config: ModelConfig, wanted: int | None) -> int:
    """Tokens of a row. A T5 has relative positions, and so no limit but the one asked for."""
    if isinstance(config, T5Config):
        return wanted or config.max_positions
    return min(config.max_positions, wanted or config.max_positions)


def _cache_tokens(models: Sequence[OpenedModel], context: int, options: LoadOptions) -> int:
    """Tokens that each level's cache holds, over all rows: as many as asked for or as fit."""
    per_token = sum(model.cache_bytes_per_token() for model in models)
    one_row = pages_for(context) * PAGE_TOKENS
    wanted = one_row * options.max_rows
    if options.kv_cache_bytes is not None:
        tokens = options.kv_cache_bytes // (per_token * PAGE_TOKENS) * PAGE_TOKENS
        if tokens < PAGE_TOKENS:
            raise CapacityError(
                f"kv_cache_bytes={options.kv_cache_bytes} holds no page: one of {PAGE_TOKENS} "
                f"tokens takes {per_token * PAGE_TOKENS} bytes over {len(models)} models"
            )
        return min(tokens, wanted)
    quarter = _memory(options.place) // 4
    affordable = quarter // (per_token * PAGE_TOKENS) * PAGE_TOKENS
    return max(PAGE_TOKENS, min(wanted, affordable))


def _memory(place: str) -> int:
    if place == "cuda":
        return int(torch.cuda.get_device_properties("cuda").total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
