"""What a request asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cascade_engine.errors import RequestError

MAX_SEED = 2**64 - 1
MAX_TOP_LOGPROBS = 1000

AllowedTokens = Callable[[Sequence[int]], Any]
"""From a row's tokens so far (prompt and output) to the token ids that may come next: a sequence of
ids, a boolean tensor over the vocabulary, or None for all. A pure function: it is also asked about
drafted prefixes, and the answer may not depend on when or how often it is asked."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when decoding stops. Speculation changes none of it, but for
    `acceptance="rejection"`.

    docs/parameters.md has the exact definitions. Raises RequestError for values out of range.
    """

    max_tokens: int = 256
    """New tokens at most; fewer when the model's context ends before."""
    n: int = 1
    """Samples of the prompt, each with noise of its own; needs temperature > 0 when above 1."""

    temperature: float = 0.0
    """0: the most likely token (ties to the lowest id). Above: sampling from
    softmax(logits / temperature)."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample among the fewest most likely tokens whose probabilities reach top_p; 1: all."""
    min_p: float = 0.0
    """Sample among tokens at least min_p times as likely as the most likely one; 0: all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output; 1: off."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that occur in the output (not in the prompt)."""
    frequency_penalty: float = 0.0
    """Subtracted, times their count, from the logits of tokens in the output (not the prompt)."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids; -inf forbids a token."""
    allowed_tokens: AllowedTokens | None = None
    """Restricts the next token, given the tokens so far: the hook for grammars."""
    seed: int | None = None
    """Seed of the noise, 0..2**64-1. None: drawn anew, and reported in the result."""
    acceptance: str = "exact"
    """"exact": drafts never change a token. "rejection": they never change the distribution that
    tokens are sampled from, but which are; more of them stay. Equal at temperature 0."""

    min_tokens: int = 0
    """Stop tokens are not chosen, and stop strings not looked for, before this many tokens; at most
    max_tokens."""
    ignore_eos: bool = False
    """Go on past the model's end-of-sequence tokens."""
    stop: str | Sequence[str] = ()
    """Strings that end the output where they appear; not part of the text."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the output, like end-of-sequence tokens."""
    include_stop: bool = False
    """Keep the stop string at the end of the text."""

    logprobs: int | None = None
    """Report the log-probability of each token, and of this many most likely tokens beside it."""
    processed_logprobs: bool = False
    """Of the distribution that was sampled from, instead of the model's own softmax(logits); needs
    logprobs."""

    prediction: str | Sequence[int] | None = None
    """An expected answer (the text being edited, say): drafted from before anything else."""

    decoder_prefix: str | Sequence[int] | None = None
    """How an encoder-decoder's answer begins: fed to the decoder behind its start token, and no
    part of the output."""

    def __post_init__(self) -> None:
        _check_int("max_tokens", self.max_tokens, 1)
        _check_int("n", self.n, 1)
        _check_int("top_k", self.top_k, 0)
        _check_int("min_tokens", self.min_tokens, 0)
        for name in ("ignore_eos", "include_stop", "processed_logprobs"):
            _check_flag(name, getattr(self, name))
        _check_float("temperature", self.temperature, 0.0, 1e6)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 1e6)
        _check_float("presence_penalty", self.presence_penalty, -1e6, 1e6)
        _check_float("frequency_penalty", self.frequency_penalty, -1e6, 1e6)
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise RequestError(f"{name} must be > 0, got 0")
        if self.n > 1 and self.temperature == 0:
            raise RequestError(f"n={self.n} samples at temperature 0 would all be equal: set n=1")
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens must be at most max_tokens={self.max_tokens}, got {self.min_tokens}: "
                "lower it or raise max_tokens"
            )
        if self.acceptance not in ("exact", "rejection"):
            raise RequestError(
                f"acceptance must be 'exact' or 'rejection', got {self.acceptance!r}"
            )
        if self.seed is not None:
            _check_int("seed", self.seed, 0)
            if self.seed > MAX_SEED:
                raise RequestError(f"seed must be at most 2**64 - 1, got {self.seed}")
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0)
            if self.logprobs > MAX_TOP_LOGPROBS:
                raise RequestError(
                    f"logprobs must be at most {MAX_TOP_LOGPROBS}, got {self.logprobs}"
                )
        elif self.processed_logprobs:
            raise RequestError(
                "processed_logprobs says of which distribution logprobs are, and none are asked "
                "for: set logprobs (0: of the tokens alone) or leave it out"
            )
        self._freeze()

    def _freeze(self) -> None:
        """Own, checked copies of what a caller could change later."""
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias must map token ids to numbers, got {self.logit_bias!r}: {{}} for none"
            )
        bias = dict(self.logit_bias)
        for token, value in bias.items():
            _check_int(f"logit_bias key {token!r}", token, 0)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or math.isnan(value) or value == math.inf:
                raise RequestError(f"logit_bias[{token}] must be a number below inf, got {value!r}")
        object.__setattr__(self, "logit_bias", MappingProxyType(bias))
        texts = "a text or a list of texts"
        stop = (self.stop,) if isinstance(self.stop, str) else _items("stop", self.stop, texts)
        for i, text in enumerate(stop):
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop[{i}] must be a string that is not empty, got {text!r}")
        object.__setattr__(self, "stop", stop)
        ids = _items("stop_token_ids", self.stop_token_ids, "a list of token ids")
        for i, token in enumerate(ids):
            _check_int(f"stop_token_ids[{i}]", token, 0)
        object.__setattr__(self, "stop_token_ids", ids)
        for name in ("prediction", "decoder_prefix"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                items = _items(name, value, "a text or a list of token ids")
                object.__setattr__(self, name, items)
        if self.allowed_tokens is not None and not callable(self.allowed_tokens):
            raise RequestError(
                "allowed_tokens must be a function of the tokens so far, got "
                f"{self.allowed_tokens!r}: lambda tokens: ... for a fixed set"
            )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and for other processes: a read-only view cannot be pickled."""
        return {**self.__dict__, "logit_bias": dict(self.logit_bias)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        object.__setattr__(self, "logit_bias", MappingProxyType(state["logit_bias"]))


def _items(name: str, value: object, what: str) -> tuple[Any, ...]:
    if isinstance(value, (bytes, Mapping)) or not isinstance(value, Iterable):
        raise RequestError(f"{name} must be {what}, got {value!r}")
    return tuple(value)


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, got {value!r}")


def _check_int(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise RequestError(f"{name} must be an integer >= {low}, got {value!r}")


def _check_float(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise RequestError(f"{name} must be a number in {low:g}..{high:g}, got {value!r}")
