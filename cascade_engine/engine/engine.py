"""The engine: owns rows, asks the policy, calls levels, emits tokens."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from os import PathLike

from cascade_engine.engine.loading import LoadOptions, LoadReport, load_levels
from cascade_engine.engine.results import Generation, LevelStats, RunStats, StepOutput
from cascade_engine.engine.row import Row
from cascade_engine.engine.stream import Stream
from cascade_engine.errors import CapacityError, RequestError
from cascade_engine.levels import NeuralLevel, ReviewItem, StatisticalLevel, TokenRows
from cascade_engine.params import SamplingParams
from cascade_engine.policy import Draft, FixedCascade, PlainDecoding, Policy
from cascade_engine.sampling import make_sampler
from cascade_engine.tokenizer import Tokenizer

Prompt = str | Sequence[int]


class Engine:
    """Decodes requests with a cascade of levels; each request's tokens are those of plain decoding.

    Use `Engine.load`. Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        neural: Sequence[NeuralLevel],
        statistical: StatisticalLevel,
        rows: TokenRows,
        tokenizer: Tokenizer | None,
        eos_ids: Sequence[int],
        policy: Policy | None,
        report: LoadReport,
    ) -> None:
        self.neural = list(neural)
        self.statistical = statistical
        self.tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.report = report
        """How each model was loaded, for people to read."""
        self._tokens = rows
        self._contexts = [level.context for level in self.neural]
        self._free_slots = list(range(rows.tokens.shape[0]))[::-1]
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []
        self._undelivered: list[StepOutput] = []
        self._request_numbers = itertools.count()
        self._policy: Policy = PlainDecoding()
        self.set_policy(policy or FixedCascade.default(len(self.neural)))

    @classmethod
    def load(
        cls,
        target: str | PathLike[str],
        drafts: Sequence[str | PathLike[str]] = (),
        tables: str | PathLike[str] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        policy: Policy | None = None,
        *,
        threads: int | None = None,
        max_rows: int = 16,
        max_context: int | None = None,
        kv_cache_bytes: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Engine:
        """Loads a target, its drafts (large to small) and an n-gram table from directories.

        `dtype`: "auto" (the checkpoint's own; float16 becomes float32 on the CPU), "float32" or
        "bfloat16". `policy` None: `FixedCascade.default`. `threads` None: CASCADE_THREADS, else all
        physical cores. `max_context` bounds every row (default: the target's own context);
        `kv_cache_bytes` bounds the caches of all levels together. `progress(model, done, total)`
        is called as layers are loaded.

        Raises ConfigError, CheckpointError, TokenizerError, CapacityError or RequestError.
        """
        options = LoadOptions(device, dtype, threads, max_rows, max_context, kv_cache_bytes)
        loaded = load_levels(target, drafts, tables, options, progress)
        return cls(
            loaded.neural,
            loaded.statistical,
            loaded.rows,
            loaded.tokenizer,
            loaded.eos_ids,
            policy,
            loaded.report,
        )

    @property
    def policy(self) -> Policy:
        return self._policy

    def set_policy(self, policy: Policy) -> None:
        """Takes effect with the next step; raises RequestError if it does not fit the levels."""
        policy.check(len(self.neural))
        self._policy = policy

    @property
    def level_names(self) -> list[str]:
        """Level 0 is the target, the last one is statistical."""
        return [*(level.name for level in self.neural), self.statistical.name]

    # Requests

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
    ) -> str:
        """Queues a request and returns its id.

        Raises RequestError (empty prompt, unknown token id, id in use) or CapacityError (the
        prompt leaves no room in the context or the cache).
        """
        params = params or SamplingParams()
        token_ids = self._encode(prompt)
        if request_id is None:
            request_id = f"request-{next(self._request_numbers)}"
        elif any(r.request_id == request_id for r in itertools.chain(self._waiting, self._running)):
            raise RequestError(f"request id {request_id!r} is in use")
        self._waiting.append(self._new_row(request_id, token_ids, params))
        return request_id

    def has_work(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._waiting or self._running or self._undelivered)

    def abort(self, request_id: str) -> bool:
        """Drops a request and frees what it holds; False if there is no such request."""
        for row in self._waiting:
            if row.request_id == request_id:
                self._waiting.remove(row)
                return True
        for row in self._running:
            if row.request_id == request_id:
                self._release(row)
                return True
        return False

    def step(self) -> list[StepOutput]:
        """One engine step: every running row drafts as its policy says and is reviewed once by the
        target. Returns the tokens that became final, at least one for each running row."""
        delivered, self._undelivered = self._undelivered, []
        return delivered + self._step()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Generation]:
        """Decodes prompts (strings or lists of token ids) to the end, in the order given.

        One set of parameters serves all prompts, or give one for each. Other requests in the
        engine go on meanwhile; the next `step` delivers what they produced.
        """
        batch = _as_batch(prompts)
        each = (
            [params] * len(batch)
            if params is None or isinstance(params, SamplingParams)
            else params
        )
        if len(each) != len(batch):
            raise RequestError(f"{len(batch)} prompts, but {len(each)} sets of parameters")
        rows: list[Row] = []
        for prompt, one in zip(batch, each, strict=True):
            request_id = f"request-{next(self._request_numbers)}"
            rows.append(self._new_row(request_id, self._encode(prompt), one or SamplingParams()))
        self._waiting.extend(rows)
        collected = {row.request_id: StepOutput(row.request_id, [], [], None) for row in rows}
        unfinished = {row.request_id for row in rows}
        try:
            while unfinished:
                for out in self._step_for(unfinished):
                    collected[out.request_id] = collected[out.request_id].followed_by(out)
                    if out.finish_reason is not None:
                        unfinished.remove(out.request_id)
        finally:
            for request_id in unfinished:
                self.abort(request_id)
        return [self._generation(row, collected[row.request_id]) for row in rows]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Stream:
        """Decodes one request token by token, as the iterator is asked for them."""
        request_id = f"request-{next(self._request_numbers)}"
        row = self._new_row(request_id, self._encode(prompt), params or SamplingParams())
        self._waiting.append(row)
        decoder = None if self.tokenizer is None else self.tokenizer.stream_decoder(continues=True)
        return Stream(
            request_id,
            step=lambda: self._step_for({request_id}),
            abort=lambda: self.abort(request_id),
            result=lambda out: self._generation(row, out),
            decoder=decoder,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError unless rows, frontiers and every level's pages agree. For tests."""
        for row in self._running:
            chain = [len(row.prompt), *row.frontier, row.length, row.limit]
            assert chain == sorted(chain), (
                f"frontiers of {row.request_id} are out of order: {chain}"
            )
            assert len(row.sources) == row.length - len(row.prompt), "sources and length differ"
        for level in self.neural:
            level.pages.check_integrity()
            for row in self._running:
                assert level.pages.length[row.slot] <= row.length - 1, f"{level.name} is ahead"
            if not self._running:
                assert level.pages.free_pages == level.pages.pages, f"{level.name} leaks pages"

    # Inside

    def _step(self) -> list[StepOutput]:
        self._admit()
        before = {row.slot: row.frontier[0] for row in self._running}
        pending = list(self._running)
        while pending:
            actions = [
                (row, self._policy.next_action(row.state(self._contexts))) for row in pending
            ]
            drafts = [(row, a) for row, a in actions if isinstance(a, Draft)]
            if drafts:
                self._draft(drafts)
                continue
            level = max(action.level for _, action in actions)
            self._review(level, [row for row, action in actions if action.level == level])
            if level == 0:
                break
        return [self._emit(row, before[row.slot]) for row in list(self._running)]

    def _step_for(self, request_ids: set[str]) -> list[StepOutput]:
        """A step that keeps the outputs of other requests for the next call of `step`."""
        outputs = self._step()
        self._undelivered += [out for out in outputs if out.request_id not in request_ids]
        return [out for out in outputs if out.request_id in request_ids]

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError(
                    "the target has no tokenizer: give prompts as lists of token ids"
                )
            return self.tokenizer.encode(prompt)
        vocab = self.neural[0].vocab_size
        token_ids = list(prompt)
        for i, token in enumerate(token_ids):
            if not isinstance(token, int) or not 0 <= token < vocab:
                raise RequestError(
                    f"prompt[{i}] must be a token id in 0..{vocab - 1}, got {token!r}"
                )
        return token_ids

    def _new_row(self, request_id: str, prompt: list[int], params: SamplingParams) -> Row:
        if not prompt:
            raise RequestError("the prompt is empty: give at least one token")
        context = self._tokens.capacity
        if len(prompt) >= context:
            raise CapacityError(
                f"the prompt has {len(prompt)} tokens, which leaves no room for an answer in a "
                f"context of {context}: shorten it"
            )
        limit = min(len(prompt) + params.max_tokens, context)
        for level in self.neural:
            if not level.pages.fits(min(limit, level.context)):
                raise CapacityError(
                    f"a row of {limit} tokens does not fit the key/value cache of {level.name}: "
                    "lower max_tokens or raise kv_cache_bytes"
                )
        seed = secrets.randbits(63) if params.seed is None else params.seed
        stats = RunStats([LevelStats(name) for name in self.level_names], len(prompt))
        return Row(
            slot=-1,
            request_id=request_id,
            params=params,
            seed=seed,
            sampler=make_sampler(params, seed),
            prompt=prompt,
            limit=limit,
            frontier=[len(prompt)] * len(self.neural),
            sources=[],
            stats=stats,
            started=0.0,
            length=len(prompt),
        )

    def _admit(self) -> None:
        """Moves waiting rows to free slots while the caches can hold them to their limits."""
        while self._waiting and self._free_slots:
            row = self._waiting[0]
            rows = [*self._running, row]
            for level in self.neural:
                if not level.pages.fits(*(min(r.limit, level.context) for r in rows)):
                    return
            self._waiting.popleft()
            row.slot = self._free_slots.pop()
            row.started = time.perf_counter()
            self._tokens.write(row.slot, row.prompt)
            self._running.append(row)
            self.neural[0].prefill(row.slot, len(row.prompt) - 1)
            row.stats.levels[0].seconds += time.perf_counter() - row.started

    def _draft(self, drafts: Sequence[tuple[Row, Draft]]) -> None:
        begin = time.perf_counter()
        counts = self.statistical.propose(
            [row.slot for row, _ in drafts],
            [row.length for row, _ in drafts],
            [action.tokens for _, action in drafts],
        )
        share = (time.perf_counter() - begin) / len(drafts)
        for (row, action), count in zip(drafts, counts, strict=True):
            row.append_draft(action.level, count)
            row.stats.levels[action.level].calls += 1
            row.stats.levels[action.level].seconds += share

    def _review(self, level: int, rows: Sequence[Row]) -> None:
        begin = time.perf_counter()
        verdicts = self.neural[level].review(
            [ReviewItem(r.slot, r.frontier[level], r.length, r.sampler) for r in rows],
            1.0 if level == 0 else self._policy.lenience,
        )
        share = (time.perf_counter() - begin) / len(rows)
        for row, verdict in zip(rows, verdicts, strict=True):
            row.settle(level, verdict.num_accepted)
            for each in self.neural:
                each.truncate(row.slot, row.length - 1)
            row.stats.levels[level].calls += 1
            row.stats.levels[level].seconds += share

    def _emit(self, row: Row, begin: int) -> StepOutput:
        """Tokens begin..length-1 are final; ends the row at a stop token or at its limit."""
        token_ids = self._tokens.read(row.slot, begin, row.length)
        finish = None
        if not row.params.ignore_eos:
            for i, token in enumerate(token_ids):
                if token in self.eos_ids:
                    token_ids = token_ids[: i + 1]
                    finish = "stop"
                    break
        if finish is None and row.length >= row.limit:
            finish = "length"
        first = begin - len(row.prompt)
        sources = row.sources[first : first + len(token_ids)]
        for source in sources:
            row.stats.levels[source].accepted += 1
        row.stats.new_tokens += len(token_ids)
        row.stats.target_calls += 1
        row.stats.seconds = time.perf_counter() - row.started
        if finish is not None:
            self._release(row)
        return StepOutput(row.request_id, token_ids, sources, finish)

    def _release(self, row: Row) -> None:
        self._running.remove(row)
        for level in self.neural:
            level.truncate(row.slot, 0)
        self._free_slots.append(row.slot)

    def _generation(self, row: Row, out: StepOutput) -> Generation:
        text = (
            "" if self.tokenizer is None else self.tokenizer.decode(out.token_ids, continues=True)
        )
        return Generation(
            request_id=row.request_id,
            prompt_token_ids=row.prompt,
            token_ids=out.token_ids,
            sources=out.sources,
            text=text,
            finish_reason=out.finish_reason or "",
            seed=row.seed,
            stats=row.stats,
        )


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
