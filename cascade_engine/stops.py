"""Where a request ends: stop tokens and stop strings, found while tokens arrive.

A stop string is a matter of text alone: where the borders of tokens lie makes no difference. The
search is Aho and Corasick's automaton (Communications of the ACM 18(6), 1975): each character is
looked at once, however many stops there are and however long the text is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from cascade_engine.detokenizer import StreamDecoder
from cascade_engine.errors import RequestError

ROOT = 0


class Stop(NamedTuple):
    """What ended a request."""

    kind: Literal["eos", "token", "string"]
    """"eos": an end-of-sequence token of the model; "token" and "string": a stop that the request
    named. A token that is both is "token"."""
    value: int | str
    """The token id, or the stop string."""


class Release(NamedTuple):
    """What one token sets free."""

    text: str
    """Text that is final: no stop can begin in it any more."""
    stopped: bool = False
    """The request ends with this token, which is the last one that counts."""
    reason: Stop | None = None
    """The stop that was found; None while there is none."""


class StopStrings:
    """An automaton over a set of stop strings. Immutable; requests may share one.

    Raises RequestError for a stop string that is empty or not valid Unicode.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._stop: list[str | None] = [None]
        self.stops = tuple(stops)
        for i, stop in enumerate(self.stops):
            _check_stop(i, stop)
            self._add(stop)
        self._link()

    def step(self, state: int, character: str) -> int:
        """The state after one more character: the longest suffix that begins a stop."""
        while True:
            following = self._next[state].get(character)
            if following is not None:
                return following
            if state == ROOT:
                return ROOT
            state = self._fallback[state]

    def found(self, state: int) -> str | None:
        """The longest stop string that ends here."""
        return self._stop[state]

    def pending(self, state: int) -> int:
        """How many of the last characters could still grow into a stop: the longest suffix of the
        text that is a proper prefix of one."""
        return self._pending[state]

    def _add(self, stop: str) -> None:
        state = ROOT
        for character in stop:
            if character not in self._next[state]:
                self._next[state][character] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._stop.append(None)
            state = self._next[state][character]
        self._stop[state] = stop

    def _link(self) -> None:
        """Sets, breadth first, where each state falls back to: its longest proper suffix."""
        self._fallback = [ROOT] * len(self._next)
        self._pending = [0] * len(self._next)
        queue = deque([ROOT])
        while queue:
            state = queue.popleft()
            fallback = self._fallback[state]
            grows = bool(self._next[state])
            self._pending[state] = self._depth[state] if grows else self._pending[fallback]
            if self._stop[state] is None:
                self._stop[state] = self._stop[fallback]
            for character, following in self._next[state].items():
                if state != ROOT:
                    self._fallback[following] = self.step(fallback, character)
                queue.append(following)


def _check_stop(index: int, stop: object) -> None:
    if not isinstance(stop, str) or not stop:
        raise RequestError(f"stop[{index}] must be a text of at least one character, got {stop!r}")
    try:
        stop.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(
            f"stop[{index}] must be valid Unicode, got {stop!r}, which no text contains"
        ) from None


class StopChecker:
    """Watches the tokens of one request; says what may be shown and where the request ends.

    - A stop token ends the request whatever its text is. It counts; its text is not part of the
      text, unless `include_stop`.
    - A stop string ends the request at the token that completes it, which counts. The text is cut
      before the stop (behind it with `include_stop`); the rest of the token's text is dropped.
      Of several stop strings the one that ends first wins, of those the longest.
    - Neither is looked for in the first `min_tokens` tokens: token number `min_tokens` + 1 is the
      first that can end the request, also with a stop string that began before.
    - Text is held back only as far as it could begin a stop string.

    `decoder` None: the tokens have no text, and stop strings are refused with RequestError.
    """

    def __init__(
        self,
        decoder: StreamDecoder | None,
        *,
        stop: StopStrings | Sequence[str] = (),
        stop_ids: Iterable[int] = (),
        eos_ids: Iterable[int] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        if isinstance(stop, str):
            raise RequestError(f"stop must be a list of texts, got the text {stop!r}")
        self._strings = stop if isinstance(stop, StopStrings) else StopStrings(stop)
        if decoder is None and self._strings.stops:
            raise RequestError(
                "stop strings need a tokenizer, and the model has none: give stop_token_ids"
            )
        self._decoder = decoder
        self._stop_ids = frozenset(stop_ids)
        self._end_ids = self._stop_ids.union(eos_ids)
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._state = ROOT
        self._held = ""
        self._shown: list[str] = []
        self.num_tokens = 0
        """Tokens that count, the one that completed a stop included."""
        self.reason: Stop | None = None
        """The stop that was found."""

    @property
    def text(self) -> str:
        """All text released so far; the request's text once it has ended."""
        return "".join(self._shown)

    def push(self, token_id: int) -> Release:
        """Takes the request's next token. None may follow one that stopped it."""
        if self.reason is not None:
            raise RuntimeError(f"token {token_id} was pushed after stop {self.reason.value!r}")
        self.num_tokens += 1
        looking = self.num_tokens > self._min_tokens
        if looking and token_id in self._end_ids:
            return self._end_at_token(token_id)
        text = "" if self._decoder is None else self._decoder.text(token_id)
        if self._strings.stops:
            return self._scan(text, looking)
        self._shown.append(text)
        return Release(text)

    def push_all(self, token_ids: Sequence[int]) -> list[str]:
        """Takes the request's next tokens, up to one that stops it (`reason`); what each of them
        releases."""
        may_end = self._strings.stops or not self._end_ids.isdisjoint(token_ids)
        if not may_end and self.reason is None and self._decoder is not None:
            texts = self._decoder.texts(token_ids)
            self._shown += texts
            self.num_tokens += len(texts)
            return texts
        texts = []
        for token in token_ids:
            texts.append(self.push(token).text)
            if self.reason is not None:
                break
        return texts

    def has_end(self, token_ids: Sequence[int], before: int) -> bool:
        """Whether one of these tokens ends the request by itself; `before` of the request's tokens
        stand before them."""
        return not self._end_ids.isdisjoint(token_ids[max(0, self._min_tokens - before) :])

    def finish(self) -> Release:
        """Ends a request that no stop has ended: releases all that was held back.

        A character cut off by the end shows only now, as U+FFFD, so a stop string of such
        characters may still be found.
        """
        if self.reason is not None:
            return Release("", True, self.reason)
        released = self._scan(self._flush(), self.num_tokens > self._min_tokens)
        if released.stopped:
            return released
        rest, self._held, self._state = self._held, "", ROOT
        return Release(released.text + self._show(rest).text)

    def _end_at_token(self, token_id: int) -> Release:
        text = self._held
        if self._include_stop and self._decoder is not None:
            text += self._decoder.text(token_id)
        text += self._flush()
        self.reason = Stop("token" if token_id in self._stop_ids else "eos", token_id)
        return self._show(text)

    def _flush(self) -> str:
        return "" if self._decoder is None else self._decoder.flush()

    def _scan(self, text: str, looking: bool) -> Release:
        """Takes more text; releases what no stop can begin in, or all up to the stop found."""
        strings, state = self._strings, self._state
        text = self._held + text
        for i in range(len(self._held), len(text)):
            state = strings.step(state, text[i])
            stop = strings.found(state) if looking else None
            if stop is not None:
                self.reason = Stop("string", stop)
                end = i + 1 if self._include_stop else i + 1 - len(stop)
                return self._show(text[:end])
        self._state = state
        cut = len(text) - strings.pending(state)
        self._held = text[cut:]
        return self._show(text[:cut])

    def _show(self, text: str) -> Release:
        if text:
            self._shown.append(text)
        return Release(text, self.reason is not None, self.reason)
