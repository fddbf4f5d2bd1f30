"""Who generates whole answers side by side, and how they are timed.

A generator answers prompts of token ids greedily, all that it is given at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.measure import SETTLE_SECONDS, quantiles
from cascade_engine import Engine, SamplingParams
from cascade_engine.policy import Policy

Prompts = list[list[int]]


@dataclass(frozen=True)
class Answers:
    """Of a group of prompts."""

    tokens: list[list[int]]
    calls: int
    """Target passes that gave tokens, one for each row that a pass gave tokens to."""


Generator = Callable[[Prompts], Answers]


def until_stop(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """Tokens up to the first of `stops`, that one included."""
    at = next((i for i, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return tokens[: at + 1]


class Transformers:
    """Greedy generation by transformers. `stops`: tokens that end an answer.

    Its assisted generation, with a draft model or by prompt lookup, takes one row; a group is
    answered one by one.
    """

    def __init__(
        self,
        target: Path,
        draft: Path | None,
        dtype: torch.dtype,
        limit: int,
        stops: Sequence[int],
        encoder_decoder: bool = False,
    ) -> None:
        import transformers

        kind = (
            transformers.AutoModelForSeq2SeqLM
            if encoder_decoder
            else transformers.AutoModelForCausalLM
        )
        self.model = kind.from_pretrained(target, dtype=dtype).eval()
        self.assistant = None
        if draft is not None:
            self.assistant = kind.from_pretrained(draft, dtype=dtype).eval()
        for model in filter(None, (self.model, self.assistant)):
            model.generation_config.eos_token_id = list(stops) or None
            model.generation_config.pad_token_id = 0
        self.facts = {"version": transformers.__version__, "weights": str(dtype)[6:]}
        self.limit = limit
        self._stops = stops
        self._encoder_decoder = encoder_decoder
        self._passes = 0
        self.model.register_forward_pre_hook(self._count)

    def plain(self, prompts: Prompts) -> Answers:
        """The whole group as one padded batch."""
        tokens = self._generate(prompts)
        return Answers(tokens, sum(map(len, tokens)))

    def assisted(self, prompts: Prompts) -> Answers:
        return self._one_by_one(prompts, assistant_model=self.assistant)

    def prompt_lookup(self, prompts: Prompts) -> Answers:
        return self._one_by_one(prompts, prompt_lookup_num_tokens=10)

    def _count(self, *_: Any) -> None:
        self._passes += 1

    def _one_by_one(self, prompts: Prompts, **options: Any) -> Answers:
        before = self._passes
        tokens = [answer for prompt in prompts for answer in self._generate([prompt], **options)]
        return Answers(tokens, self._passes - before)

    @torch.inference_mode()
    def _generate(self, prompts: Prompts, **options: Any) -> list[list[int]]:
        width = max(map(len, prompts))
        gaps = [width - len(prompt) for prompt in prompts]
        rows, masks = [], []
        for prompt, gap in zip(prompts, gaps, strict=True):
            pad, ones = [0] * gap, [1] * len(prompt)
            left = not self._encoder_decoder
            rows.append(pad + prompt if left else prompt + pad)
            masks.append(pad + ones if left else ones + pad)
        out = self.model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(masks),
            max_new_tokens=self.limit,
            do_sample=False,
            **options,
        )
        begin = 1 if self._encoder_decoder else width
        return [until_stop(row[begin:], self._stops) for row in out.tolist()]


class Ours:
    """Greedy generation by the engine."""

    def __init__(
        self, engine: Engine, policy: Policy, limit: int, ignore_eos: bool = False
    ) -> None:
        self.engine, self.policy = engine, policy
        self.params = SamplingParams(max_tokens=limit, ignore_eos=ignore_eos)

    def __call__(self, prompts: Prompts) -> Answers:
        if self.engine.policy is not self.policy:
            self.engine.set_policy(self.policy)
        results = self.engine.generate(prompts, self.params)
        calls = sum(result.stats.target_calls for result in results)
        return Answers([result.token_ids for result in results], calls)


@dataclass
class Tally:
    """What one generator did."""

    answers: list[list[int]]
    seconds: list[float]
    tokens: list[int]
    calls: int = 0

    def rates(self) -> list[float]:
        return [count / spent for count, spent in zip(self.tokens, self.seconds, strict=True)]

    @property
    def rate(self) -> float:
        return sum(self.tokens) / sum(self.seconds)


def run_groups(
    cases: Mapping[str, Generator],
    groups: Sequence[Prompts],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Tally]:
    """Every case answers every group in turn; whole rounds, as many as `seconds` allow and at least
    one. Each case answers the first group once before, untimed."""
    tallies = {name: Tally([], [], []) for name in cases}
    for case in cases.values():
        case(groups[0])
    start, rounds = clock(), 0
    while not rounds or (clock() - start) * (rounds + 1) / rounds < seconds:
        for group in groups:
            for name, case in cases.items():
                time.sleep(SETTLE_SECONDS)
                begin = clock()
                found = case(group)
                elapsed = clock() - begin
                tally = tallies[name]
                tally.seconds.append(elapsed)
                tally.answers += found.tokens
                tally.tokens.append(sum(map(len, found.tokens)))
                tally.calls += found.calls
        rounds += 1
    return tallies


def same_answers(tally: Tally, other: Tally) -> int:
    return sum(a == b for a, b in zip(tally.answers, other.answers, strict=True))


def ratio(tally: Tally, other: Tally) -> dict[str, float]:
    """Of tokens per second: over all groups (`total`), and quantiles group by group."""
    pairs = zip(tally.rates(), other.rates(), strict=True)
    return {"total": tally.rate / other.rate, **quantiles([a / b for a, b in pairs])}


def figures(tally: Tally) -> dict[str, Any]:
    """JSON-ready."""
    return {
        "tokens": sum(tally.tokens),
        "tokens_per_second": tally.rate,
        "by_group": quantiles(tally.rates()),
        "tokens_per_target_call": sum(tally.tokens) / tally.calls,
        "answers": len(tally.answers),
    }
