"""From request parameters to what native code chooses tokens with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cascade_engine.errors import RequestError
from cascade_engine.ops import Sampler
from cascade_engine.params import AllowedTokens, SamplingParams

WORD_BITS = 32
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def make_sampler(
    params: SamplingParams,
    seed: int,
    sample_index: int,
    prompt_length: int,
    stop_ids: Sequence[int],
    source_length: int = 0,
) -> Sampler:
    """The rule that turns logits at a position into a token: a pure function of the logits, the
    seed, the sample's index, the position and the tokens before it.

    `stop_ids` are the tokens that min_tokens keeps out; the first `source_length` tokens are an
    encoder's, of which no penalty takes note. Raises RequestError.
    """
    try:
        return Sampler(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            logit_bias=list(params.logit_bias.items()),
            min_tokens=params.min_tokens,
            stop_ids=list(stop_ids),
            seed=seed,
            sample_index=sample_index,
            prompt_length=prompt_length,
            source_length=source_length,
            rejection=params.acceptance == "rejection",
        )
    except ValueError as error:
        raise RequestError(str(error)) from None


class AllowedMasks:
    """Masks of allowed tokens, `[positions, ceil(vocab / 32)]` words, as native code reads them."""

    def __init__(self, allowed: AllowedTokens, vocab_size: int) -> None:
        self._allowed = allowed
        self._vocab_size = vocab_size
        self._words = -(-vocab_size // WORD_BITS)

    def along(
        self, tokens: list[int], drafted: Sequence[int], parents: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, Exception]]:
        """Masks for what follows `tokens` and for what follows each drafted token, `[len(drafted)
        + 1, words]`, and what was raised instead of an answer, by drafted token (-1: `tokens`).
        Drafted token j stands behind token `parents[j]` < j, or behind `tokens` (-1).

        A review does not go past a draft that is not allowed; what lies behind it is not asked for
        and stays all-allowed, like what lies behind a token without an answer."""
        masks = torch.full((len(drafted) + 1, self._words), -1, dtype=torch.int32)
        errors: dict[int, Exception] = {}
        prefixes: list[list[int] | None] = []
        answers: list[torch.Tensor | None] = []
        for i, (token, parent) in enumerate(zip((-1, *drafted), (-1, *parents), strict=True)):
            prefix: list[int] | None = tokens
            if i > 0:
                before, allowed = prefixes[parent + 1], answers[parent + 1]
                reached = before is not None and (allowed is None or bool(allowed[token]))
                prefix = [*before, token] if before is not None and reached else None
            answer = None
            try:
                answer = None if prefix is None else self._next(prefix)
            except Exception as error:
                errors[i - 1] = error
                prefix = None
            prefixes.append(prefix)
            answers.append(answer)
            if answer is not None:
                masks[i] = self._packed(answer)
        return masks, errors

    def _next(self, prefix: list[int]) -> torch.Tensor | None:
        """Boolean `[vocab]`, or None for no restriction."""
        answer = self._allowed(prefix)
        if answer is None:
            return None
        if isinstance(answer, torch.Tensor) and answer.dtype == torch.bool:
            if answer.shape != (self._vocab_size,):
                raise RequestError(
                    f"allowed_tokens must return {self._vocab_size} flags, got shape "
                    f"{tuple(answer.shape)}"
                )
            allowed = answer.cpu()
        else:
            allowed = torch.zeros(self._vocab_size, dtype=torch.bool)
            allowed[self._ids(answer)] = True
        if not bool(allowed.any()):
            raise RequestError(f"allowed_tokens allows no token after {len(prefix)} tokens")
        return allowed

    def _ids(self, answer: Any) -> torch.Tensor:
        """int64 `[ids]`."""
        ids = torch.as_tensor(answer if isinstance(answer, torch.Tensor) else list(answer)).cpu()
        if not ids.numel():
            return torch.zeros(0, dtype=torch.int64)
        if ids.dim() != 1 or ids.dtype not in INTEGERS:
            raise RequestError(
                "allowed_tokens must return a list of token ids or a boolean tensor, got "
                f"{str(ids.dtype).removeprefix('torch.')} {list(ids.shape)}"
            )
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= self._vocab_size:
            raise RequestError(
                f"allowed_tokens must return ids in 0..{self._vocab_size - 1}, got "
                f"{least if least < 0 else most}"
            )
        return ids.long()

    def _packed(self, allowed: torch.Tensor) -> torch.Tensor:
        bits = torch.zeros(self._words * WORD_BITS, dtype=torch.int64)
        bits[: self._vocab_size] = allowed
        weights = 1 << torch.arange(WORD_BITS, dtype=torch.int64)
        words = (bits.view(self._words, WORD_BITS) * weights).sum(-1)
        return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
