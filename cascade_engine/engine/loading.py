"""From directories to levels: what `Engine.load` does before there is an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from cascade_engine.cache import PAGE_TOKENS, bytes_per_token, pages_for
from cascade_engine.engine.options import DEVICE_DTYPES, DTYPES, UNUSED, LoadOptions
from cascade_engine.engine.self_draft import is_self_draft, self_draft_layers, self_draft_level
from cascade_engine.errors import CapacityError, ConfigError, RequestError, VocabularyMismatch
from cascade_engine.levels import (
    DrafterLevel,
    EncoderDecoderLevel,
    NeuralLevel,
    StatisticalLevel,
    TokenRows,
)
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import ModelConfig
from cascade_engine.models.family import ModelWeights, load_weights, open_model
from cascade_engine.models.t5 import T5Weights
from cascade_engine.models.t5_config import T5Config, float16_refusal
from cascade_engine.ops import CpuBackend, CudaBackend, NgramTable, activation_dtype
from cascade_engine.tables import load_table, prebuilt_for
from cascade_engine.tokenizer import Tokenizer, check_same_vocabulary

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
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


@dataclass(frozen=True)
class _Model:
    name: str
    directory: Path
    config: ModelConfig
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    note: str

    def cache_bytes_per_token(self) -> int:
        c = self.config
        cached = activation_dtype(self.dtype)
        return bytes_per_token(c.num_layers, c.num_kv_heads, c.head_dim, cached)


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
    models = [_open(path, options) for path in (target, *others)]
    layers = [
        self_draft_layers(str(draft), models[0].name, models[0].config)
        for draft in drafts
        if is_self_draft(draft)
    ]
    decoder_start = _shared_decoder_start(models)
    vocab_size = _shared_vocabulary(models)
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
    model: _Model, weights: ModelWeights, compressed: bool, backend: CpuBackend | CudaBackend
) -> str:
    """A model's line of the report."""
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{model.name}: {weights.num_bytes() / 1e6:.1f} MB, {'compressed ' * compressed}"
        f"{dtype}{model.note}, {backend.isa}, {backend.context.threads} threads"
    )


def _level(
    model: _Model,
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


def _open(path: str | PathLike[str], options: LoadOptions) -> _Model:
    directory = Path(path)
    config, checkpoint = open_model(directory)
    stored = config.dtype or STORED_DTYPES[next(iter(checkpoint.bytes_by_dtype()))]
    note = ""
    supported = [DTYPES[name] for name in DEVICE_DTYPES[options.place]]
    if options.dtype != "auto":
        chosen = DTYPES[options.dtype]
    elif stored in supported:
        chosen = stored
    elif options.place == "cpu":
        chosen = torch.float32
    else:
        raise RequestError(
            f"{directory.name} is stored as {str(stored).removeprefix('torch.')}, which device "
            f"{options.place!r} does not compute in; pass dtype='bfloat16' or 'float16'"
        )
    if isinstance(config, T5Config) and config.gated and chosen == torch.float16:
        raise ConfigError(f"{directory.name}: {float16_refusal('dtype float16')}")
    if chosen != stored:
        note = f" (checkpoint: {str(stored).removeprefix('torch.')})"
    return _Model(
        directory.resolve().name,
        directory,
        config,
        checkpoint,
        Tokenizer.load(directory),
        chosen,
        note,
    )


def _context(config: ModelConfig, wanted: int | None) -> int:
    """Tokens of a row. A T5 has relative positions, and so no limit but the one asked for."""
    if isinstance(config, T5Config):
        return wanted or config.max_positions
    return min(config.max_positions, wanted or config.max_positions)


def _shared_decoder_start(models: Sequence[_Model]) -> int | None:
    """The decoders' first token, None for decoder-only models; all levels read one row, so that
    they must be of one kind and start alike."""
    kinds = {False: "a decoder-only LLaMA", True: "an encoder-decoder T5"}
    target = models[0]
    is_t5 = isinstance(target.config, T5Config)
    for draft in models[1:]:
        if isinstance(draft.config, T5Config) != is_t5:
            raise ConfigError(
                f"draft {draft.name} is {kinds[not is_t5]} and target {target.name} "
                f"{kinds[is_t5]}: use a draft of the target's kind, with its vocabulary"
            )
    starts = [m.config.decoder_start_id for m in models if isinstance(m.config, T5Config)]
    for draft, start in zip(models[1:], starts[1:], strict=False):
        if start != starts[0]:
            raise ConfigError(
                f"draft {draft.name} has decoder_start_token_id {start}, target {target.name} "
                f"{starts[0]}: use a draft that starts with the target's token"
            )
    return starts[0] if is_t5 else None


def _shared_vocabulary(models: Sequence[_Model]) -> int:
    """Tokens that every level knows: the target's tokenizer, or its embedding rows without one."""
    target = models[0]
    rows = target.config.vocab_size
    vocab_size = rows if target.tokenizer is None else min(rows, target.tokenizer.vocab_size)
    for draft in models[1:]:
        check_same_vocabulary(target.tokenizer, draft.tokenizer, rows, draft.config.vocab_size)
        if draft.config.vocab_size < vocab_size:
            raise VocabularyMismatch(
                f"draft {draft.name} has {draft.config.vocab_size} embedding rows, fewer than the "
                f"{vocab_size} tokens of target {target.name}: use a draft with the same vocabulary"
            )
    return vocab_size


def _cache_tokens(models: Sequence[_Model], context: int, options: LoadOptions) -> int:
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
