"""The engine: owns rows, asks the policy, calls levels, emits tokens."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

from cascade_engine.chat import ChatFormat, Message
from cascade_engine.engine.cycle import Cycle
from cascade_engine.engine.loading import Loaded, load_levels
from cascade_engine.engine.options import LoadOptions
from cascade_engine.engine.requests import Prompt, RequestBuilder, batch_of
from cascade_engine.engine.results import Batching, Capacity, Generation, Piece, StepOutput
from cascade_engine.engine.row import Row
from cascade_engine.engine.stream import Stream
from cascade_engine.engine.tracing import Tracing
from cascade_engine.engine.watching import Watcher
from cascade_engine.errors import CapacityError, RequestError
from cascade_engine.levels import Drafter
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


class Engine:
    """Decodes requests with a cascade of levels; each request's tokens are those of plain decoding.

    Use `Engine.load`. Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        loaded: Loaded,
        policy: Policy | str | PathLike[str],
        reuse_cache: bool,
        prefill_tokens: int,
    ) -> None:
        if prefill_tokens < 1:
            raise RequestError(f"prefill_tokens must be >= 1, got {prefill_tokens}")
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
        self._own_format: ChatFormat | None = None
        self._undelivered: list[StepOutput] = []
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

    @classmethod
    def load(
        cls,
        target: str | PathLike[str],
        drafts: Sequence[str | PathLike[str]] = (),
        tables: str | PathLike[str] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        policy: Policy | str | PathLike[str] = "auto",
        *,
        threads: int | None = None,
        max_rows: int = 16,
        max_context: int | None = None,
        kv_cache_bytes: int | None = None,
        reuse_cache: bool = True,
        prefill_tokens: int = 512,
        padding: str | None = None,
        learn_tokens: int = 0,
        drafter: Drafter | None = None,
        drafter_fallback: bool = False,
        compress_weights: bool | str = "auto",
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Engine:
        """Loads a target, its drafts (large to small) and an n-gram table. A draft "self:N" is the
        target's first N layers and its head: it takes no memory.

        `device`: "auto" and "cpu" are the CPU, "cuda" is an NVIDIA GPU of compute capability 8.0
        or newer. `dtype`: "auto" (the checkpoint's own; float16 becomes float32 on the CPU); on
        the CPU "float32", "bfloat16" or "int8" (matrices as 8-bit integers with a scale for each
        output, the rest as in bfloat16), on a GPU "bfloat16" or "float16". `policy`: "auto"
        (`AutoCascade()`, which finds its setting while it runs), "fixed" (`FixedCascade.default`),
        "plain", a policy or a policy file (docs/tuning.md). `threads` None: CASCADE_THREADS, else
        all physical cores.
        `max_context` bounds every row (default: the target's own context; a T5 has none, see
        docs/t5.md); `kv_cache_bytes` bounds the caches of all levels together. With `reuse_cache` a
        prompt that begins like an earlier one starts from what is cached. A step feeds at most
        `prefill_tokens` prompt tokens beside the running rows. `padding` "left" runs passes as
        dense left-padded batches instead of ragged ones, for comparison.
        `learn_tokens` > 0 keeps so many tokens of complete answers, the latest ones, for trees of
        later requests: they come sooner and are the same, but how soon tells what was said before
        (`clear_learned`). `drafter` takes the place of the built-in statistics as the last level,
        or, with `drafter_fallback`, goes before them (docs/drafting.md).
        `compress_weights`: bfloat16 matrices in 12 bits a number without loss, on the CPU; "auto":
        of models that are faster for it, because the processor's caches do not hold them.
        `progress(model, done, total)` is called as layers are loaded.

        Raises ConfigError, CheckpointError, TokenizerError, CapacityError or RequestError.
        """
        options = LoadOptions(
            device,
            dtype,
            threads,
            max_rows,
            max_context,
            kv_cache_bytes,
            padding,
            learn_tokens,
            drafter,
            drafter_fallback,
            compress_weights,
        )
        loaded = load_levels(target, drafts, tables, options, progress)
        return cls(loaded, policy, reuse_cache, prefill_tokens)

    @property
    def policy(self) -> Policy:
        return self._policy

    def set_policy(self, policy: Policy | str | PathLike[str]) -> None:
        """Takes effect with the next step; raises RequestError if it does not fit the levels. What
        a policy has learnt is there again when the same one is set again."""
        if isinstance(policy, (str, PathLike)):
            policy = named(policy, [level.name for level in self.neural])
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
        elif any(row.request_id == request_id for row in self._roster.rows()):
            raise RequestError(f"request id {request_id!r} is in use")
        self._roster.enqueue(self._new_rows(prompt, params, request_id))
        return request_id

    def has_work(self) -> bool:
        """Whether a request is waiting or running, or an output is waiting to be delivered."""
        return bool(self._cycle.has_work() or self._undelivered)

    def abort(self, request_id: str) -> bool:
        """Drops a request and frees what it holds; False if there is no such request."""
        return self._cycle.drop(request_id)

    def fork(self, request_id: str, n: int) -> list[int]:
        """Lets a request (its first sample still running) go on `n` more times from where it is,
        each with noise of its own.

        The new samples share what is cached (copied when written) and are delivered under the same
        request id with the indices returned; they deliver only what comes after the fork. Raises
        RequestError if there is no such request.
        """
        rows = [row for row in self._roster.rows() if row.request_id == request_id]
        if not rows or n < 1:
            raise RequestError(f"cannot fork {request_id!r} {n} times: no such request, or n < 1")
        parent = min(rows, key=lambda row: row.index)
        first = 1 + max(row.index for row in rows)
        token_ids = self._cycle.token_ids(parent)
        forks = [self._requests.fork(parent, first + i, token_ids) for i in range(n)]
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
        outputs = self._cycle.step(self._running)
        delivered, self._undelivered = self._undelivered, []
        return delivered + outputs

    def step_for(self, request_ids: Collection[str]) -> list[StepOutput]:
        """`step`, giving out these requests' outputs alone; the others' are kept until they are
        asked for."""
        outputs = self.step()
        self._undelivered = [out for out in outputs if out.request_id not in request_ids]
        return [out for out in outputs if out.request_id in request_ids]

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Decodes prompts (strings or lists of token ids) to the end, in the order given; a prompt
        with n samples has n entries, one after the other.

        One set of parameters serves all prompts, or give one for each. Other requests in the
        engine go on meanwhile; the next `step` delivers what they produced.
        """
        rows: list[Row] = []
        for prompt, each in batch_of(prompts, params):
            rows += self._new_rows(prompt, each, self._fresh_id())
        self._roster.enqueue(rows)
        last = {(row.request_id, row.index): row.output([]) for row in rows}
        pieces: dict[tuple[str, int], list[Piece]] = {key: [] for key in last}
        unfinished = set(last)
        try:
            while unfinished:
                for out in self.step_for({request_id for request_id, _ in unfinished}):
                    key = (out.request_id, out.index)
                    last[key] = out
                    pieces[key] += out.pieces
                    if out.finish_reason is not None:
                        unfinished.remove(key)
        finally:
            for request_id in {request_id for request_id, _ in unfinished}:
                self.abort(request_id)
        return [Generation.of(replace(out, pieces=pieces[key])) for key, out in last.items()]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Decodes one sample token by token, as the iterator is asked for them."""
        request_id = self._fresh_id()
        rows = self._new_rows(prompt, params, request_id)
        if len(rows) != 1:
            raise RequestError(f"a stream has one sample, got n={len(rows)}: use generate or step")
        self._roster.enqueue(rows)
        return Stream(
            rows[0].output([]),
            step=lambda: self.step_for({request_id}),
            abort=lambda: self._abort_stream(rows[0]),
        )

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        chat_format: ChatFormat | str | None = None,
    ) -> list[Generation]:
        """Answers a conversation, `[{"role": "user", "content": ...}, ...]`; a sample an entry.

        `chat_format`: a built-in one by name, or None for the target's own template. Later turns
        start from what earlier ones left in the cache. Raises RequestError for a conversation that
        the format cannot express.
        """
        return self.generate([self.encode_chat(messages, chat_format)], params)

    def encode_chat(
        self, messages: Sequence[Message], chat_format: ChatFormat | str | None = None
    ) -> list[int]:
        """The prompt of a conversation, for `add_request` and `stream`; see `chat`."""
        if self.tokenizer is None:
            raise RequestError("the target has no tokenizer: chat needs one")
        if chat_format is None:
            chat_format = self.chat_format
        elif isinstance(chat_format, str):
            chat_format = ChatFormat.named(chat_format)
        return chat_format.encode(messages, self.tokenizer)

    @property
    def chat_format(self) -> ChatFormat:
        """The target's own template. Raises RequestError where it has none."""
        if self._own_format is None:
            self._own_format = ChatFormat.for_directory(self._directory)
        return self._own_format

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

    def _stop_tracing(self) -> None:
        self._cycle.set_watcher(Watcher())

    def _fresh_id(self) -> str:
        taken = {row.request_id for row in self._roster.rows()}
        while True:
            request_id = f"request-{next(self._request_numbers)}"
            if request_id not in taken:
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

    def _abort_stream(self, row: Row) -> str:
        """Drops the request; returns the text that was held back."""
        self.abort(row.request_id)
        return row.stops.finish().text
