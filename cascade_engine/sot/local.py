"""Sessions on an engine: their requests run together, with the cascade on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cascade_engine.engine import Batching, Engine, Piece, StepOutput
from cascade_engine.errors import CapacityError, DecodingError, RequestError
from cascade_engine.params import MAX_SEED, SamplingParams
from cascade_engine.policy import FixedCascade
from cascade_engine.sot.encoding import Encoded, PromptEncoder
from cascade_engine.sot.jobs import Job, Outcome
from cascade_engine.sot.load import StepCosts, depth_of, narrowed
from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.results import SotPiece
from cascade_engine.sot.session import Session

BATCHINGS = {
    "fork": Batching(left_padded=False, reuse_cache=True),
    "ragged": Batching(left_padded=False, reuse_cache=False),
    "left-padded": Batching(left_padded=True, reuse_cache=False),
}


@dataclass
class _Running:
    """A request of a session in the engine."""

    session: int
    job: Job
    prompt: Encoded
    pieces: list[Piece] = field(default_factory=list)


class EngineWriter:
    """Runs sessions on an engine until they are done. Other requests in the engine go on."""

    def __init__(
        self,
        engine: Engine,
        encoder: PromptEncoder,
        options: SotOptions,
        costs: StepCosts,
        split_budget: bool,
    ) -> None:
        self._engine = engine
        self._encoder = encoder
        self._options = options
        self._costs = costs
        self._split = split_budget
        self._running: dict[str, _Running] = {}
        self._fresh = False
        """Whether requests were added since the last step: their prompts are in the next one."""

    def run(self, sessions: Sequence[Session]) -> Iterator[tuple[int, SotPiece]]:
        """Yields (session, piece) as text becomes final. Raises what `Engine.add_request` raises
        for a question's first request; a point that fails later is reported in its result."""
        jobs = [session.start() for session in sessions]
        with self._set_up():
            for number, (session, first) in enumerate(zip(sessions, jobs, strict=True)):
                yield from self._submit(number, session, first)
            while self._running:
                try:
                    outputs = self._step()
                except DecodingError as error:
                    yield from self._fail(sessions, error)
                    continue
                for out in outputs:
                    yield from self._take(sessions, out)

    @contextlib.contextmanager
    def _set_up(self) -> Iterator[None]:
        """The engine's batching for the time of a run; drops what is unfinished at its end."""
        engine, before, policy = self._engine, self._engine.batching, self._engine.policy
        engine.set_batching(BATCHINGS[self._options.expand])
        try:
            yield
        finally:
            for request_id in self._running:
                engine.abort(request_id)
            self._running.clear()
            engine.set_policy(policy)
            engine.set_batching(before)
            if not before.reuse_cache:
                engine.clear_cache()

    def _submit(
        self, number: int, session: Session, jobs: Sequence[Job]
    ) -> Iterator[tuple[int, SotPiece]]:
        for job in jobs:
            try:
                prompt = self._encoder.encode(job.prompt)
                params = replace(self._params(job), decoder_prefix=prompt.decoder_prefix)
                request_id = self._engine.add_request(prompt.tokens, params)
            except (CapacityError, RequestError) as error:
                if job.stage != "point":
                    raise
                _, more = session.finish(job, Outcome("", "error", 0, 0, 0, str(error)))
                yield from self._submit(number, session, more)
                continue
            self._running[request_id] = _Running(number, job, prompt)
            self._fresh = True
            opening = session.opening(job)
            if opening is not None:
                yield number, opening

    def _params(self, job: Job) -> SamplingParams:
        params = self._options.params
        seed = params.seed
        if seed is not None and job.points:
            seed = (seed + job.points[0]) % (MAX_SEED + 1)
        stop = (*params.stop, *job.prompt.stop)
        # min_tokens may be about the ordinary answer, which is longer than a point.
        least = min(params.min_tokens, job.max_tokens)
        return replace(params, max_tokens=job.max_tokens, min_tokens=least, stop=stop, seed=seed)

    def _step(self) -> list[StepOutput]:
        """One step, with drafts as deep as suits the rows there are; measures it."""
        engine, policy = self._engine, self._engine.policy
        fresh, self._fresh = self._fresh, False
        if fresh or not self._split or not isinstance(policy, FixedCascade):
            return engine.step_for(self._running.keys())
        rows, depth = engine.capacity().running, depth_of(policy)
        if rows > 1:  # one row has nothing to split with
            depth = self._costs.best_depth(rows, depth)
        begin = time.perf_counter()
        try:
            if depth < depth_of(policy):
                engine.set_policy(narrowed(policy, depth))
            outputs = engine.step_for(self._running.keys())
        finally:
            engine.set_policy(policy)
        if len(outputs) == rows:
            emitted = sum(len(out.pieces) for out in outputs)
            self._costs.observe(rows, depth, time.perf_counter() - begin, emitted)
        return outputs

    def _take(self, sessions: Sequence[Session], out: StepOutput) -> Iterator[tuple[int, SotPiece]]:
        running = self._running[out.request_id]
        running.pieces += out.pieces
        session = sessions[running.session]
        piece = session.piece(running.job, out.text)
        if piece is not None:
            yield running.session, piece
        if out.finish_reason is not None:
            del self._running[out.request_id]
            outcome = Outcome(
                "".join(piece.text for piece in running.pieces),
                out.finish_reason,
                out.stats.prompt_tokens,
                out.stats.cached_tokens,
                out.stats.new_tokens,
                token_ids=tuple(piece.token_id for piece in running.pieces),
                prompt_token_ids=tuple(running.prompt.tokens),
                decoder_prefix_ids=tuple(running.prompt.decoder_prefix or ()),
            )
            yield from self._finish(session, running, outcome)

    def _fail(
        self, sessions: Sequence[Session], error: DecodingError
    ) -> Iterator[tuple[int, SotPiece]]:
        """The requests that the engine dropped end with what they had."""
        for request_id in error.request_ids:
            running = self._running.pop(request_id, None)
            if running is not None:
                outcome = Outcome(
                    "".join(piece.text for piece in running.pieces),
                    "error",
                    len(running.prompt.tokens) + len(running.prompt.decoder_prefix or ()),
                    0,
                    len(running.pieces),
                    str(error),
                    prompt_token_ids=tuple(running.prompt.tokens),
                    decoder_prefix_ids=tuple(running.prompt.decoder_prefix or ()),
                )
                yield from self._finish(sessions[running.session], running, outcome)

    def _finish(
        self, session: Session, running: _Running, outcome: Outcome
    ) -> Iterator[tuple[int, SotPiece]]:
        pieces, jobs = session.finish(running.job, outcome)
        for piece in pieces:
            yield running.session, piece
        yield from self._submit(running.session, session, jobs)
