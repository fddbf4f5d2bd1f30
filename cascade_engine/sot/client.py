"""An OpenAI-compatible endpoint: one answer at a time, with patience (extra `endpoint`)."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any

from cascade_engine.errors import RequestError
from cascade_engine.sot.jobs import Outcome

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
