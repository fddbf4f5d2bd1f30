"""Sessions on an OpenAI-compatible endpoint, through the openai client (extra `endpoint`).

Requests of all points run in parallel threads. One that fails for a reason that may pass is tried
again; one that fails for good is reported for its point, and the others go on.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from cascade_engine.errors import RequestError
from cascade_engine.params import MAX_SEED
from cascade_engine.sot.jobs import Job, Outcome
from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.prompts import Prompt, PromptSet
from cascade_engine.sot.results import Decision, SotPiece, SotResult
from cascade_engine.sot.router import Router
from cascade_engine.sot.runner import SotStream, chosen_router, decision, needed_prompts
from cascade_engine.sot.session import Session

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """Where requests go and how patient they are."""

    url: str
    """Up to and with "/v1"."""
    model: str
    api_key: str = field(default="none", repr=False)
    concurrency: int = 16
    """Requests at a time."""
    timeout: float = 60.0
    """Seconds for one attempt."""
    attempts: int = 4
    backoff: float = 0.5
    """Seconds before the second attempt, doubled for each further one, with jitter; an endpoint's
    Retry-After is heeded up to `longest_wait`."""
    longest_wait: float = 30.0
    stream: bool = False
    """Deliver pieces while an answer is written. Once a piece came, a failure is not tried again:
    what there is stays, and the failure is reported."""
    continues_answers: bool = False
    """The endpoint goes on with a last message of the assistant (some servers do). Otherwise how
    the answer begins is said at the end of the user's message, as the paper does."""

    def __post_init__(self) -> None:
        for name, low in (("concurrency", 1), ("attempts", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise RequestError(f"{name} must be an integer >= {low}, got {value!r}")
        for name in ("timeout", "backoff", "longest_wait"):
            if not getattr(self, name) >= 0:
                raise RequestError(f"{name} must be >= 0, got {getattr(self, name)!r}")
        if not self.url.startswith(("http://", "https://")):
            raise RequestError(f"the endpoint must be an http or https URL, got {self.url!r}")


class Endpoint:
    """Chat completions with retries. Thread-safe."""

    def __init__(self, options: EndpointOptions) -> None:
        try:
            import openai
        except ImportError:
            raise RequestError(
                "endpoints need the openai client: pip install 'cascade_engine[endpoint]'"
            ) from None
        self.options = options
        self._openai = openai
        self._client = openai.OpenAI(
            base_url=options.url,
            api_key=options.api_key,
            timeout=options.timeout or None,
            max_retries=0,
        )
        self._stopped = threading.Event()

    def complete(
        self, messages: list[dict[str, str]], pieces: Any = None, **arguments: Any
    ) -> Outcome:
        """One answer; never raises for what an endpoint does. `pieces(text)` is called as text
        arrives where answers are streamed."""
        error, attempt = "", 0
        for attempt in range(1, self.options.attempts + 1):
            written: list[str] = []

            def take(text: str, written: list[str] = written) -> None:
                written.append(text)
                if pieces is not None:
                    pieces(text)

            try:
                return self._once(messages, take, attempt, arguments)
            except self._openai.OpenAIError as failure:
                error = f"{type(failure).__name__}: {failure}"
                if self.options.stream and written:
                    return Outcome("".join(written), "error", error=error, attempts=attempt)
                if attempt == self.options.attempts or not self._may_pass(failure):
                    break
                if self._stopped.wait(self._pause(failure, attempt)):
                    break
        return Outcome("", "error", error=error, attempts=attempt)

    def stop(self) -> None:
        """No further attempts."""
        self._stopped.set()

    def close(self) -> None:
        self._client.close()

    def _once(
        self, messages: list[dict[str, str]], take: Any, attempt: int, arguments: dict[str, Any]
    ) -> Outcome:
        create: Any = self._client.chat.completions.create
        arguments = {"model": self.options.model, "messages": messages, **arguments}
        if not self.options.stream:
            reply = create(**arguments)
            if not getattr(reply, "choices", None):
                raise self._openai.OpenAIError(f"an answer without choices: {reply!r:.200}")
            choice = reply.choices[0]
            take(choice.message.content or "")
            return _outcome(
                choice.message.content or "", choice.finish_reason, reply.usage, attempt
            )
        texts, reason, usage = [], None, None
        options = {"include_usage": True}
        with create(**arguments, stream=True, stream_options=options) as chunks:
            for chunk in chunks:
                usage = getattr(chunk, "usage", None) or usage
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    if choice.delta.content:
                        texts.append(choice.delta.content)
                        take(choice.delta.content)
        if reason is None:
            raise self._openai.OpenAIError("the stream ended before the answer did")
        return _outcome("".join(texts), reason, usage, attempt)

    def _may_pass(self, failure: Exception) -> bool:
        if isinstance(failure, self._openai.APIStatusError):
            return failure.status_code in RETRIED_STATUS
        return True

    def _pause(self, failure: Exception, attempt: int) -> float:
        response = getattr(failure, "response", None)
        asked = "" if response is None else response.headers.get("retry-after", "")
        try:
            seconds = float(asked)
        except ValueError:
            seconds = self.options.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        return min(max(seconds, 0.0), self.options.longest_wait)


def _outcome(text: str, reason: str | None, usage: Any, attempt: int) -> Outcome:
    details = getattr(usage, "prompt_tokens_details", None)
    cached = getattr(details, "cached_tokens", None)
    return Outcome(
        text,
        {"stop": "stop", "length": "length"}.get(reason or "", reason or "stop"),
        None if usage is None else usage.prompt_tokens,
        None if usage is None else cached or 0,
        None if usage is None else usage.completion_tokens,
        attempts=attempt,
    )


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
