"""Whole answers: loads an engine, decodes prompts and conversations to their ends."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike

from cascade_engine.chat import ChatFormat, Message
from cascade_engine.engine.loading import load_levels
from cascade_engine.engine.options import LoadOptions
from cascade_engine.engine.requests import Prompt, batch_of
from cascade_engine.engine.results import Generation, Piece
from cascade_engine.engine.row import Row
from cascade_engine.engine.step_engine import StepEngine
from cascade_engine.engine.stream import Stream
from cascade_engine.errors import RequestError
from cascade_engine.levels import Drafter
from cascade_engine.params import SamplingParams
from cascade_engine.policy import Policy


class Engine(StepEngine):
    """Decodes requests with a cascade of levels; each request's tokens are those of plain decoding.

    Use `Engine.load`. Not thread-safe: one thread calls it.
    """

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
            prefill_tokens,
        )
        loaded = load_levels(target, drafts, tables, options, progress)
        return cls(loaded, policy, reuse_cache, prefill_tokens)

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
        """Decodes one sample token by token, as the iterator is asked for them. One left
        before its end must be closed, or its request runs on with the others."""
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

    @functools.cached_property
    def chat_format(self) -> ChatFormat:
        """The target's own template. Raises RequestError where it has none."""
        return ChatFormat.for_directory(self._directory)

    # Inside

    def _abort_stream(self, row: Row) -> str:
        """Drops the request; returns the text that was held back."""
        self.abort(row.request_id)
        return row.stops.finish().text
