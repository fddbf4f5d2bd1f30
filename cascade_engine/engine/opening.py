"""Models whose directories are opened and checked, before any weight is packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from cascade_engine.cache import bytes_per_token
from cascade_engine.engine.options import DEVICE_DTYPES, DTYPES, LoadOptions
from cascade_engine.errors import ConfigError, RequestError, VocabularyMismatch
from cascade_engine.models.checkpoint import Checkpoint
from cascade_engine.models.config import ModelConfig
from cascade_engine.models.family import open_model
from cascade_engine.models.t5_config import T5Config, float16_refusal
from cascade_engine.ops import activation_dtype
from cascade_engine.tokenizer import Tokenizer, check_same_vocabulary

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class OpenedModel:
    """A checked checkpoint, and the dtype it will be loaded in."""

    name: str
    directory: Path
    config: ModelConfig
    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    note: str
    """Of the report: the checkpoint's own dtype, where that is another."""

    def cache_bytes_per_token(self) -> int:
        c = self.config
        cached = activation_dtype(self.dtype)
        return bytes_per_token(c.num_layers, c.num_kv_heads, c.head_dim, cached)


def opened(path: str | PathLike[str], options: LoadOptions) -> OpenedModel:
    """Raises CheckpointError, ConfigError or TokenizerError for what a directory holds, and
    RequestError or ConfigError for a dtype that does not suit it."""
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
    return OpenedModel(
        directory.resolve().name,
        directory,
        config,
        checkpoint,
        Tokenizer.load(directory),
        chosen,
        note,
    )


def shared_decoder_start(models: Sequence[OpenedModel]) -> int | None:
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


def shared_vocabulary(models: Sequence[OpenedModel]) -> int:
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
