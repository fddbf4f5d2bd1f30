"""Sessions on an OpenAI-compatible endpoint, through the openai client (extra `endpoint`).

Requests of all points run in parallel threads. One that fails for a reason that may pass is tried
again; one that fails for good is reported for its point, and the others go on.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from cascade_engine.errors import RequestError
from cascade_engine.params import MAX_SEED
from cascade_engine.sot.client import Endpoint, EndpointOptions
from cascade_engine.sot.jobs import Job, Outcome
from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.prompts import Prompt, PromptSet
from cascade_engine.sot.results import Decision, SotPiece, SotResult
from cascade_engine.sot.router import Router
from cascade_engine.sot.runner import SotStream, chosen_router, decision, needed_prompts
from cascade_engine.sot.session import Session


class EndpointWriter:
    """Runs sessions on an endpoint until they are done."""

    def __init__(self, endpoint: Endpoint, options: SotOptions) -> None:
        self._endpoint = endpoint
        self._options = options

    def run(self, sessions: Sequence[Session]) -> Iterator[tuple[int, SotPiece]]:
        """Yields (session, piece) as text arrives."""
        events: queue.SimpleQueue[tuple[int, Job, str | Outcome | BaseException]]
        events = queue.SimpleQueue()
        pool = ThreadPoolExecutor(self._endpoint.options.concurrency, "endpoint")
        pending = 0
        try:
            for number, session in enumerate(sessions):
                for job in session.start():
                    pending += self._submit(pool, events, number, job)
                    yield from _opening(number, session, job)
            while pending:
                number, job, event = events.get()
                session = sessions[number]
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, str):
                    piece = session.piece(job, event)
                    if piece is not None:
                        yield number, piece
                    continue
                pending -= 1
                pieces, jobs = session.finish(job, event)
                for piece in pieces:
                    yield number, piece
                for following in jobs:
                    pending += self._submit(pool, events, number, following)
                    yield from _opening(number, session, following)
        finally:
            self._endpoint.stop()
            pool.shutdown(wait=False, cancel_futures=True)
            if not pending:
                self._endpoint.close()

    def _submit(self, pool: ThreadPoolExecutor, events: Any, number: int, job: Job) -> int:
        def work() -> None:
            try:
                stripper = _Stripper(job.prompt, lambda text: events.put((number, job, text)))
                outcome = self._endpoint.complete(
                    self._messages(job.prompt), stripper.take, **self._arguments(job)
                )
                events.put((number, job, stripper.finish(outcome)))
            except BaseException as error:
                events.put((number, job, error))

        pool.submit(work)
        return 1

    def _messages(self, prompt: Prompt) -> list[dict[str, str]]:
        if not prompt.begin:
            return [{"role": "user", "content": prompt.user}]
        if self._endpoint.options.continues_answers:
            return [
                {"role": "user", "content": prompt.user},
                {"role": "assistant", "content": prompt.begin},
            ]
        content = f"{prompt.user}\n\nBegin the answer with exactly this:\n{prompt.begin}"
        return [{"role": "user", "content": content}]

    def _arguments(self, job: Job) -> dict[str, Any]:
        p = self._options.params
        arguments: dict[str, Any] = {"max_tokens": job.max_tokens, "temperature": p.temperature}
        stop = [*p.stop, *job.prompt.stop]
        if stop:
            arguments["stop"] = stop
        if p.top_p != 1.0:
            arguments["top_p"] = p.top_p
        if p.seed is not None:
            seed = p.seed + (job.points[0] if job.points else 0)
            arguments["seed"] = seed % (MAX_SEED + 1)
        for name in ("presence_penalty", "frequency_penalty"):
            if getattr(p, name):
                arguments[name] = getattr(p, name)
        return arguments


def _opening(number: int, session: Session, job: Job) -> Iterator[tuple[int, SotPiece]]:
    piece = session.opening(job)
    if piece is not None:
        yield number, piece


class _Stripper:
    """Takes the beginning that an answer was given off it where the answer repeats it, and with it
    what a talkative model says before (which a stream has shown by then)."""

    def __init__(self, prompt: Prompt, show: Any) -> None:
        self._begin = prompt.begin.strip()
        self._show = show
        self._held: str | None = prompt.begin and ""

    def take(self, text: str) -> None:
        """Text as it arrives; held back while it may still be that beginning."""
        if not self._begin or self._held is None:
            self._show(text)
            return
        self._held += text
        plain = self._held.lstrip()
        if len(plain) >= len(self._begin) or not self._begin.startswith(plain):
            self._show(self._without(self._held))
            self._held = None

    def finish(self, outcome: Outcome) -> Outcome:
        if self._held:
            self._show(self._held)
        return replace(outcome, text=self._without(outcome.text))

    def _without(self, text: str) -> str:
        plain = text.lstrip()
        if self._begin and plain.startswith(self._begin):
            return plain[len(self._begin) :]
        _, found, rest = text.partition(f"\n{self._begin}")
        if self._begin and found:
            return rest
        return text if not self._begin or text[:1].isspace() or not text else f" {text}"


class EndpointSkeletonOfThought:
    """As `SkeletonOfThought`, on an endpoint.

    Settings that the protocol does not know (top_k, min_p, repetition_penalty, ...) are refused.
    """

    def __init__(
        self,
        endpoint: EndpointOptions,
        options: SotOptions | None = None,
        router: Router | str | None = None,
    ) -> None:
        self.options = options or SotOptions()
        self._prompts = PromptSet.load(self.options.prompts)
        if self._prompts.completion:
            raise RequestError("an endpoint answers messages: these prompts are texts to continue")
        _refuse_unknown(self.options)
        self._endpoint_options = endpoint
        self._router = chosen_router(router, self.options)
        self._prompts.require(needed_prompts(self.options, self._router))
        Endpoint(endpoint).close()

    def stream(self, question: str) -> SotStream:
        session = self._session(question)
        return SotStream(self._run([session]), session)

    def answer(self, question: str) -> SotResult:
        return self.answer_all([question])[0]

    def answer_all(self, questions: Sequence[str]) -> list[SotResult]:
        sessions = [self._session(question) for question in questions]
        for _ in self._run(sessions):
            pass
        return [session.result() for session in sessions]

    def decide(self, question: str) -> Decision | None:
        return decision(question, self.options, self._router)

    def _session(self, question: str) -> Session:
        return Session(question, self._prompts, self.options, self.decide(question))

    def _run(self, sessions: Sequence[Session]) -> Iterator[tuple[int, SotPiece]]:
        return EndpointWriter(Endpoint(self._endpoint_options), self.options).run(sessions)


def _refuse_unknown(options: SotOptions) -> None:
    p = options.params
    given = {
        "top_k": p.top_k,
        "min_p": p.min_p,
        "repetition_penalty": p.repetition_penalty != 1.0,
        "logit_bias": p.logit_bias,
        "stop_token_ids": p.stop_token_ids,
        "ignore_eos": p.ignore_eos,
        "min_tokens": p.min_tokens,
        "chat_format": options.chat_format,
    }
    for name, value in given.items():
        if value:
            raise RequestError(f"an endpoint does not take {name}: leave it out")
