"""The engine step by step: requests in, tokens out."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Collection
from os import PathLike
from typing import Any

from cascade_engine.engine.cycle import Cycle
from cascade_engine.engine.loading import Loaded
from cascade_engine.engine.requests import Prompt, RequestBuilder
from cascade_engine.engine.results import Batching, Capacity, StepOutput
from cascade_engine.engine.row import Row
from cascade_engine.engine.tracing import Tracing
from cascade_engine.engine.watching import Watcher
from cascade_engine.errors import CapacityError, DecodingError, RequestError
from cascade_engine.params import SamplingParams
from cascade_engine.policy import (
    Learner,
    Learning,
    LevelSet,
    Listener,
    PlainDecoding,
    Policy,
    named,
)
from cascade_engine.trace.writer import TraceWriter


class StepEngine:
    """Owns the requests of loaded levels: they are added, forked and aborted between steps, and
    each step delivers what became final. `Engine` decodes whole answers with it.
    """

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy | str | PathLike[str],
        reuse_cache: bool,
        prefill_tokens: int,
    ) -> None:
        self.neural = loaded.neural
        self.statistical = loaded.statistical
        self.tokenizer = loaded.tokenizer
        self.report = loaded.report
        """How each model was loaded, for people to read."""
        self.eos_ids = loaded.eos_ids
        """Tokens that end an answer."""
        self._cycle = Cycle(self.neural, self.statistical, loaded.rows, reuse_cache, prefill_tokens)
        self._roster = self._cycle.roster
        self._requests = RequestBuilder(
            loaded.tokenizer,
            loaded.eos_ids,
            self.neural[0].vocab_size,
            loaded.rows.capacity,
            tuple(self.level_names),
            loaded.decoder_start,
        )
        self._rows = loaded.rows
        self._directory = loaded.directory
        self._undelivered: list[StepOutput] = []
        self._failures: list[DecodingError] = []
        """Of requests that `step_for` was not asked for, or whose outputs it gives out first."""
        self._request_numbers = itertools.count()
        self.level_set = LevelSet(
            len(self.neural),
            tuple(level.weights.num_bytes() for level in self.neural),
            "\n".join((*loaded.report.lines, self.statistical.name, *platform.uname())),
        )
        self._policy: Policy = PlainDecoding()
        self._running: Policy = self._policy
        self._learned: tuple[Learning, Learner] | None = None
        self.set_policy(policy)

    @property
    def policy(self) -> Policy:
        return self._policy

    def set_policy(self, policy: Policy | str | PathLike[str]) -> None:
        """Takes effect with the next step; raises RequestError if it does not fit the levels. What
        a policy has learnt is there again when the same one is set again."""
        if isinstance(policy, (str, PathLike)):
            policy = named(policy, [level.name for level in self.neural])
        if not callable(getattr(policy, "check", None)):
            raise RequestError(
                "policy must be 'auto', 'fixed', 'plain', a policy or a policy file, got "
                f"{policy!r}"
            )
        policy.check(len(self.neural))
        if policy == self._policy:
            return
        self._policy = self._running = policy
        learner = None
        if isinstance(policy, Learning):
            if self._learned is None or self._learned[0] != policy:
                self._learned = policy, policy.start(self.level_set)
            self._running = learner = self._learned[1]
        self._cycle.set_learner(learner)

    @property
    def listeners(self) -> list[Listener]:
        """They hear of every pass, review and step; add to them, or remove."""
        return self._cycle.audience.listeners

    @property
    def batching(self) -> Batching:
        """How passes over several rows are laid out, and whether prefixes are shared."""
        return Batching(self.neural[0].left_padded, self._roster.slots.reuse)

    def set_batching(self, batching: Batching) -> None:
        """Takes effect with the next step and changes no token."""
        for level in self.neural:
            level.left_padded = batching.left_padded
        self._roster.slots.reuse = batching.reuse_cache

    @property
    def level_names(self) -> list[str]:
        """Level 0 is the target, the last one is statistical."""
        return [*(level.name for level in self.neural), self.statistical.name]

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompts; `decoder_prefix` is for such targets."""
        return self._requests.decoder_start is not None

    # Requests

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
    ) -> str:
        """Queues a request and returns its id; `step` delivers its tokens.

        Raises RequestError (a bad prompt or parameter, an id in use) or CapacityError (the prompt
        leaves no room in the context or the cache).
        """
        if request_id is None:
            request_id = self._fresh_id()
        elif self._is_in_use(request_id):
            raise RequestError(f"request id {request_id!r} is in use")
        self._roster.enqueue(self._new_rows(prompt, params, request_id))
        return request_id

    def has_work(self) -> bool:
        """Whether a request is waiting or running, or an output or error is yet to be delivered."""
        return bool(self._cycle.has_work() or self._undelivered or self._failures)

    def abort(self, request_id: str) -> bool:
        """Drops a request, frees what it holds and delivers no more of it; False if no such request
        waits or runs."""
        self._undelivered = [out for out in self._undelivered if out.request_id != request_id]
        self._failures = [e for e in self._failures if e.request_ids != [request_id]]
        return self._cycle.drop(request_id)

    def fork(self, request_id: str, n: int) -> list[int]:
        """Lets a request (its first sample still running) go on `n` more times from where it is,
        each with noise of its own.

        The new samples share what is cached (copied when written) and are delivered under the same
        request id with the indices returned, which no sample of it had before; they deliver only
        what comes after the fork. Raises RequestError if there is no such request, or for n < 1.
        """
        if type(n) is not int or n < 1:
            raise RequestError(f"n must be an integer >= 1 to fork {request_id!r}, got {n!r}")
        rows = [row for row in self._roster.rows() if row.request_id == request_id]
        if not rows:
            raise RequestError(f"cannot fork {request_id!r}: no such request waits or runs")
        parent = min(rows, key=lambda row: row.index)
        token_ids = self._cycle.token_ids(parent)
        forks = [self._requests.fork(parent, token_ids) for _ in range(n)]
        self._roster.enqueue(forks)
        return [row.index for row in forks]

    def stats(self) -> dict[str, Any]:
        """Counters since loading or `reset_stats`, and what is held at this moment."""
        return {
            **self._cycle.stats.snapshot(),
            "waiting": len(self._roster.waiting),
            "running": len(self._roster.slots.running),
            "pages": self._roster.slots.occupancy(),
        }

    def capacity(self) -> Capacity:
        """What is free for further requests at this moment."""
        free_rows, free_tokens = self._roster.slots.vacancies()
        waiting = len(self._roster.waiting)
        return Capacity(len(self._roster.slots.running), waiting, free_rows, free_tokens)

    def reset_stats(self) -> None:
        """Starts the counters over."""
        self._cycle.stats.reset()

    def trace(self, path: str | PathLike[str]) -> Tracing:
        """Writes every draft, review and acceptance into a file from now on, until what is returned
        is closed, or the `with` left that it stands in. No token changes. docs/trace.md: what the
        file holds, and how to look at it.

        Raises RequestError if a trace is being written, OSError for a file that cannot be.
        """
        if isinstance(self._cycle.audience.watcher, Tracing):
            raise RequestError("a trace is being written: close it before another one begins")
        writer = TraceWriter(path, self.level_names)
        tracing = Tracing(writer, self._rows, self.tokenizer, stop=self._stop_tracing)
        self._cycle.set_watcher(tracing)
        return tracing

    def step(self) -> list[StepOutput]:
        """One engine step: every running row drafts as its policy says and is reviewed once by the
        target. Returns the tokens that became final, at least one for each running row.

        Raises DecodingError, once, when requests had to be dropped; nothing of the others is lost.
        """
        if self._failures:
            raise self._failures.pop(0)
        outputs = self._cycle.step(self._running)
        delivered, self._undelivered = self._undelivered, []
        return delivered + outputs

    def step_for(self, request_ids: Collection[str]) -> list[StepOutput]:
        """`step`, giving out these requests' outputs and errors alone; the others' are kept until
        they are asked for."""
        if not any(each in request_ids for error in self._failures for each in error.request_ids):
            failures, self._failures = self._failures, []
            try:
                self._undelivered = self.step()
            except DecodingError as error:
                failures.append(error)
            finally:
                self._failures = failures
        outputs = self._undelivered
        self._undelivered = [out for out in outputs if out.request_id not in request_ids]
        asked = [out for out in outputs if out.request_id in request_ids]
        if not asked:
            self._raise_failure_of(request_ids)
        return asked

    def clear_cache(self) -> None:
        """Forgets the caches that finished requests left for later ones."""
        self._roster.slots.clear()

    def clear_learned(self) -> None:
        """Forgets what was learnt from complete answers."""
        self.statistical.clear_learned()

    def check_integrity(self) -> None:
        """Raises AssertionError unless rows, frontiers and every level's pages agree. For tests."""
        self._cycle.check_integrity()

    # Inside

    def _raise_failure_of(self, request_ids: Collection[str]) -> None:
        for error in self._failures:
            failed = [each for each in error.request_ids if each in request_ids]
            if failed:
                self._failures.remove(error)
                others = [each for each in error.request_ids if each not in request_ids]
                if others:
                    self._failures.append(DecodingError(str(error), others))
                error.request_ids = failed
                raise error

    def _stop_tracing(self) -> None:
        self._cycle.set_watcher(Watcher())

    def _is_in_use(self, request_id: str) -> bool:
        rows = (row.request_id for row in self._roster.rows())
        return request_id in {*rows, *(out.request_id for out in self._undelivered)}

    def _fresh_id(self) -> str:
        while self._is_in_use(request_id := f"request-{next(self._request_numbers)}"):
            pass
        return request_id

    def _new_rows(
        self, prompt: Prompt, params: SamplingParams | None, request_id: str
    ) -> list[Row]:
        rows = self._requests.rows(request_id, prompt, params or SamplingParams())
        if not self._roster.slots.could_hold(rows[0]):
            raise CapacityError(
                f"a row of {rows[0].limit} tokens (prompt and max_tokens) does not fit the "
                f"key/value cache of {self._roster.slots.capacity} tokens: lower max_tokens or "
                "raise kv_cache_bytes"
            )
        return rows
