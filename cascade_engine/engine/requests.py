"""From a prompt and parameters to rows, with every check that can be made beforehand."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cascade_engine.engine.results import LevelStats, RunStats
from cascade_engine.engine.row import Row
from cascade_engine.errors import CapacityError, RequestError
from cascade_engine.params import SamplingParams
from cascade_engine.sampling import AllowedMasks, make_sampler
from cascade_engine.stops import StopChecker, StopStrings
from cascade_engine.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class RequestBuilder:
    """What requests are checked against."""

    tokenizer: Tokenizer | None
    eos_ids: tuple[int, ...]
    vocab_size: int
    context: int
    level_names: tuple[str, ...]
    decoder_start: int | None = None
    """Of an encoder-decoder: the token that follows the prompt, which the encoder reads."""

    def rows(self, request_id: str, prompt: Prompt, params: SamplingParams) -> list[Row]:
        """One row for each of the request's samples. Raises RequestError for a prompt that is empty
        or not in the vocabulary, CapacityError for one that leaves no room for an answer."""
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params must be SamplingParams, got {params!r}")
        token_ids, source = self._encode(prompt, params.decoder_prefix)
        for name in ("stop_token_ids", "logit_bias"):
            for token in getattr(params, name):
                if token >= self.vocab_size:
                    raise RequestError(
                        f"{name} names token {token}; the vocabulary has {self.vocab_size}"
                    )
        seed = secrets.randbits(63) if params.seed is None else params.seed
        strings = StopStrings(params.stop)
        prediction = None
        if params.prediction is not None:
            ids = self._token_ids("prediction", params.prediction)
            prediction = torch.tensor(ids, dtype=torch.int32)
        indices = itertools.count()
        return [
            self._row(request_id, indices, token_ids, source, params, seed, strings, prediction)
            for _ in range(params.n)
        ]

    def fork(self, parent: Row, token_ids: Sequence[int]) -> Row:
        """A row that goes on from `token_ids`, the prompt and what `parent` has emitted."""
        strings = StopStrings(parent.params.stop)
        row = self._row(
            parent.request_id,
            parent.later_indices,
            parent.prompt,
            parent.source,
            parent.params,
            parent.seed,
            strings,
            parent.prediction,
        )
        row.tokens = token_ids
        emitted = token_ids[len(parent.prompt) :]
        for token in emitted:
            row.stops.push(token)
        row.stats.new_tokens = len(emitted)
        row.sources = list(parent.sources[: len(emitted)])
        row.roll_back()
        return row

    def _row(
        self,
        request_id: str,
        indices: Iterator[int],
        prompt: tuple[int, ...],
        source: int,
        params: SamplingParams,
        seed: int,
        strings: StopStrings,
        prediction: torch.Tensor | None,
    ) -> Row:
        index = next(indices)
        eos_ids = () if params.ignore_eos else self.eos_ids
        stop_ids = [i for i in (*eos_ids, *params.stop_token_ids) if i < self.vocab_size]
        levels = len(self.level_names) - 1
        # The decoder's start token is nobody's prompt; what stands behind it is.
        asked = len(prompt) - (source > 0)
        return Row(
            request_id=request_id,
            index=index,
            params=params,
            seed=seed,
            prompt=prompt,
            tokens=prompt,
            limit=min(len(prompt) + params.max_tokens, self.context),
            sampler=make_sampler(params, seed, index, len(prompt), stop_ids, source),
            stops=self._stops(params, strings, eos_ids, continues=asked > source),
            stats=RunStats([LevelStats(name) for name in self.level_names], asked),
            frontier=[len(prompt)] * levels,
            length=len(prompt),
            later_indices=indices,
            source=source,
            allowed=(
                None
                if params.allowed_tokens is None
                else AllowedMasks(params.allowed_tokens, self.vocab_size)
            ),
            prediction=prediction,
        )

    def _stops(
        self, params: SamplingParams, strings: StopStrings, eos_ids: Sequence[int], continues: bool
    ) -> StopChecker:
        """`continues`: the text goes on from a text."""
        tokenizer = self.tokenizer
        return StopChecker(
            None if tokenizer is None else tokenizer.stream_decoder(continues=continues),
            stop=strings,
            stop_ids=params.stop_token_ids,
            eos_ids=eos_ids,
            min_tokens=params.min_tokens,
            include_stop=params.include_stop,
        )

    def _encode(self, prompt: Prompt, prefix: Prompt | None) -> tuple[tuple[int, ...], int]:
        """A row's first tokens, and how many of them an encoder reads."""
        token_ids = self._token_ids("prompt", prompt)
        if not token_ids:
            raise RequestError("the prompt is empty: give at least one token")
        if self.decoder_start is None:
            if prefix is not None:
                raise RequestError(
                    "decoder_prefix is for encoder-decoders: put it at the end of the prompt"
                )
            if len(token_ids) >= self.context:
                raise CapacityError(
                    f"the prompt has {len(token_ids)} tokens, which leaves no room for an answer "
                    f"in a context of {self.context}: shorten it"
                )
            return tuple(token_ids), 0
        begin = [] if prefix is None else self._token_ids("decoder_prefix", prefix)
        source = len(token_ids)
        token_ids += [self.decoder_start, *begin]
        if len(token_ids) >= self.context:
            behind = f" and its decoder_prefix {len(begin)}" if begin else ""
            raise CapacityError(
                f"the encoder's input has {source} tokens{behind}, which leaves no room for an "
                f"answer in a row of {self.context}, input and answer together: shorten it or "
                "raise max_context"
            )
        return tuple(token_ids), source

    def _token_ids(self, what: str, text: Prompt) -> list[int]:
        if isinstance(text, str):
            if self.tokenizer is None:
                raise RequestError(f"the target has no tokenizer: give the {what} as token ids")
            if what == "prompt":
                return self.tokenizer.encode(text)
            return self.tokenizer.encode(text, add_bos=False, add_eos=False)
        if isinstance(text, (bytes, bytearray)) or not isinstance(text, Sequence):
            got = type(text).__name__ + (": call its tolist()" if hasattr(text, "tolist") else "")
            raise RequestError(f"the {what} must be a text or a list of token ids, got {got}")
        token_ids: list[int] = [*text]
        for i, token in enumerate(token_ids):
            if isinstance(token, bool) or not isinstance(token, int):
                raise RequestError(f"{what}[{i}] must be a token id, got {token!r}")
            if not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"{what}[{i}] must be a token id in 0..{self.vocab_size - 1}, got {token}"
                )
        return token_ids


def batch_of(
    prompts: Prompt | Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[tuple[Prompt, SamplingParams]]:
    """Each prompt with its parameters. Raises RequestError where they differ in number."""
    if not isinstance(prompts, Sequence):
        ways = {"tolist": ": pass its tolist()", "__iter__": ": pass list() of it"}
        way = next((text for name, text in ways.items() if hasattr(prompts, name)), "")
        raise RequestError(
            "prompts must be a text, a list of token ids, or a list of such prompts, got "
            f"{type(prompts).__name__}{way}"
        )
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        batch: list[Prompt] = [prompts]  # type: ignore[list-item]
    else:
        batch = list(prompts)  # type: ignore[arg-type]
    if params is None or isinstance(params, SamplingParams):
        params = [params or SamplingParams()] * len(batch)
    if not isinstance(params, Sequence):
        raise RequestError(
            f"params must be SamplingParams or a list of them, got {type(params).__name__}"
        )
    if len(params) != len(batch):
        raise RequestError(f"{len(batch)} prompts, but {len(params)} sets of parameters")
    return list(zip(batch, params, strict=True))
