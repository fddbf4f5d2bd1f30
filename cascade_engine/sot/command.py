"""`--sot` of the command line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from cascade_engine.console import say, table
from cascade_engine.engine import Engine
from cascade_engine.errors import RequestError
from cascade_engine.params import SamplingParams
from cascade_engine.sot.endpoint import EndpointOptions, EndpointSkeletonOfThought
from cascade_engine.sot.hf_router import HfRouter
from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.results import ORDINARY, SKELETON, Prices, SotResult
from cascade_engine.sot.router import Router
from cascade_engine.sot.runner import SkeletonOfThought, SotStream

EXIT_FAILED = 2


class Answering(Protocol):
    """An engine or an endpoint that answers by points."""

    options: SotOptions

    def stream(self, question: str) -> SotStream: ...


def check_options(args: argparse.Namespace) -> None:
    """Raises RequestError for options that exclude each other or need one another."""
    if args.endpoint is not None:
        if args.model is None:
            raise RequestError("--endpoint needs --model NAME")
        for name in ("target", "draft", "table", "interactive", "compare"):
            if getattr(args, name):
                raise RequestError(f"--endpoint decodes elsewhere: leave --{name} out")
        args.sot = args.sot or "on"
    elif args.model is not None or args.prices is not None:
        name = "model" if args.model is not None else "prices"
        raise RequestError(f"--{name} needs --endpoint URL")
    if args.sot is None:
        for name in ("sot_prompts", "dependencies", "router"):
            if getattr(args, name):
                raise RequestError(f"--{name.replace('_', '-')} needs --sot")
        return
    for name in ("interactive", "compare", "system"):
        if getattr(args, name):
            raise RequestError(f"--sot is many requests: leave --{name} out")
    if args.router is not None and args.sot != "auto":
        raise RequestError(f"--router needs --sot auto, got --sot {args.sot}")


def local_of(
    args: argparse.Namespace, engine: Engine, params: SamplingParams, embedded: bool
) -> SkeletonOfThought:
    own = "embedded-t5" if engine.is_encoder_decoder else "embedded"
    prompts = args.sot_prompts or (own if embedded else "default")
    options = replace(_options(args, params, prompts), chat_format=args.chat_format)
    return SkeletonOfThought(engine, options, _router(args))


def endpoint_of(args: argparse.Namespace, params: SamplingParams) -> EndpointSkeletonOfThought:
    if args.chat_format is not None:
        raise RequestError("an endpoint has its own chat format: leave --chat-format out")
    endpoint = EndpointOptions(
        url=args.endpoint,
        model=args.model,
        api_key=os.environ.get(args.api_key_env) or "none",
        concurrency=args.concurrency,
        timeout=args.timeout,
        stream=True,
    )
    options = _options(args, params, args.sot_prompts or "default")
    return EndpointSkeletonOfThought(endpoint, options, _router(args))


def answer_by_points(args: argparse.Namespace, question: str, sot: Answering) -> int:
    """Prints points in their order while they are written; then what they took."""
    prices = _prices(args.prices)
    stream = sot.stream(question)
    printer = _InOrder()
    try:
        for point, text in stream:
            printer.take(point, text)
    except KeyboardInterrupt:
        stream.close()
        print(flush=True)
        return 130
    result = stream.result()
    printer.finish(result)
    if args.stats_json:
        Path(args.stats_json).write_text(json.dumps(result.as_dict(), indent=2) + "\n")
    if not args.quiet:
        _summarise(result, prices)
    for index, error in result.failures.items():
        say(f"error: {'the answer' if index == ORDINARY else f'point {index}'}: {error}")
    return EXIT_FAILED if result.failures else 0


def _options(args: argparse.Namespace, params: SamplingParams, prompts: str) -> SotOptions:
    return SotOptions(
        use=args.sot,
        prompts=prompts,
        expand=args.sot_expand,
        params=params,
        points_per_request=args.points_per_request,
        dependencies=args.dependencies,
    )


def _router(args: argparse.Namespace) -> Router | str | None:
    if args.router is None or args.router == "model":
        return args.router
    return HfRouter(args.router)


def _prices(text: str | None) -> Prices | None:
    if text is None:
        return None
    try:
        prompt, completion = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(f"--prices must be two numbers such as 0.5,1.5, got {text!r}") from None
    return Prices(prompt, completion)


class _InOrder:
    """Shows the first point that is not finished as it grows, and holds back later ones."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._shown = ""

    def take(self, point: int, text: str) -> None:
        if point == SKELETON:
            return
        self._texts[point] = self._texts.get(point, "") + text
        first = min(self._texts)
        if point == first and first in (1, ORDINARY):
            self._show(self._texts[first])

    def finish(self, result: SotResult) -> None:
        """The whole text: what was shown of it is not shown again."""
        self._show(result.text)
        print(flush=True)

    def _show(self, text: str) -> None:
        text = text.lstrip()
        if not text.startswith(self._shown):
            # A talkative model's opening was shown and does not belong to the point.
            print()
            self._shown = ""
        sys.stdout.write(text[len(self._shown) :])
        sys.stdout.flush()
        self._shown = text.rstrip()


def _summarise(result: SotResult, prices: Prices | None) -> None:
    how = f"{len(result.points)} points" if result.used_sot else "ordinary decoding"
    say(f"skeleton-of-thought: {how} ({result.reason}) in {result.seconds:.3f} s")
    rows = [["stage", "requests", "attempts", "prompt", "cached", "new", "ms"]]
    for stage in result.stages:
        counts: list[Any] = [stage.requests, stage.attempts, stage.prompt_tokens]
        counts += [stage.cached_tokens, stage.new_tokens]
        shown = ["?" if count is None else str(count) for count in counts]
        rows.append([stage.name, *shown, f"{stage.seconds * 1e3:.1f}"])
    say(table(rows))
    if any(point.after for point in result.skeleton.points):
        say(f"waves: {result.skeleton.waves()}")
    for note in result.notes:
        say(f"note: {note}")
    if prices is not None:
        cost = result.cost(prices)
        say("cost: unknown, the endpoint counts no tokens" if cost is None else f"cost: {cost:.6f}")
