"""Questions in, answers out: Skeleton-of-Thought on an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from cascade_engine.engine import Engine
from cascade_engine.errors import RequestError
from cascade_engine.sot.encoding import PromptEncoder
from cascade_engine.sot.load import Expectations, StepCosts, depth_of, room_for_points
from cascade_engine.sot.local import EngineWriter
from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.prompts import PromptSet
from cascade_engine.sot.results import Decision, SotPiece, SotResult
from cascade_engine.sot.router import Router, TrainedRouter
from cascade_engine.sot.session import Session

MODEL_ROUTER = "model"


class Writer(Protocol):
    """What runs sessions: an engine, or an endpoint."""

    def run(self, sessions: Sequence[Session]) -> Iterator[tuple[int, SotPiece]]: ...


class SotStream(Iterator[SotPiece]):
    """Pieces of one answer as they become final; `result` tells what there is so far."""

    def __init__(self, pieces: Iterator[tuple[int, SotPiece]], session: Session) -> None:
        self._pieces = pieces
        self._session = session

    def __next__(self) -> SotPiece:
        return next(self._pieces)[1]

    def close(self) -> None:
        """Ends the requests where they are."""
        self._pieces.close()  # type: ignore[attr-defined]

    def result(self) -> SotResult:
        return self._session.result()


class SkeletonOfThought:
    """Answers questions by skeleton and points; keeps what it learns of the engine's speed.

    `router`: asked when `options.use` is "auto"; None: the built-in one; "model": the target
    answers A, B or C. Raises RequestError for options that the engine cannot honour.
    """

    def __init__(
        self,
        engine: Engine,
        options: SotOptions | None = None,
        router: Router | str | None = None,
    ) -> None:
        self.options = options or SotOptions()
        self.costs = StepCosts()
        self._engine = engine
        self._prompts = PromptSet.load(self.options.prompts)
        self._encoder = PromptEncoder(engine, self._prompts, self.options.chat_format)
        self._encoder.check(self.options.expand)
        self._router = chosen_router(router, self.options)
        self._prompts.require(needed_prompts(self.options, self._router))
        self._sizes = Expectations()

    def stream(self, question: str) -> SotStream:
        """Pieces of the answer; the engine advances while the iterator is asked for them."""
        session = self._session(question)
        return SotStream(self._writer().run([session]), session)

    def answer(self, question: str) -> SotResult:
        return self.answer_all([question])[0]

    def answer_all(self, questions: Sequence[str]) -> list[SotResult]:
        """Answers questions together, in the order given."""
        sessions = [self._session(question) for question in questions]
        for _ in self._writer().run(sessions):
            pass
        results = [session.result() for session in sessions]
        for result in results:
            self._sizes.learn(result)
        return results

    def decide(self, question: str) -> Decision | None:
        """Whether a question is to be answered by points, as things stand; None: the model itself
        is to be asked."""
        return decision(question, self.options, self._router, self.room)

    def room(self) -> Decision:
        """Whether the engine has room for points at this moment."""
        depth = depth_of(self._engine.policy)
        return room_for_points(self._engine.capacity(), self.costs, self._sizes, depth)

    def _session(self, question: str) -> Session:
        marks = self._encoder.marks
        decided = self.decide(question)
        return Session(question, self._prompts, self.options, decided, self.room, marks)

    def _writer(self) -> EngineWriter:
        split = self.options.use == "auto"
        return EngineWriter(self._engine, self._encoder, self.options, self.costs, split)


def skeleton_of_thought(
    engine: Engine, question: str, router: Router | str | None = None, **options: Any
) -> SotResult:
    """Answers one question: a skeleton, then all of its points in one batch.

    `options` are the fields of `SotOptions`. Raises RequestError, CapacityError.
    """
    return SkeletonOfThought(engine, SotOptions(**options), router).answer(question)


def chosen_router(router: Router | str | None, options: SotOptions) -> Router | str | None:
    """The router in force; None where none is asked."""
    if isinstance(router, str) and router != MODEL_ROUTER:
        raise RequestError(f"router must be a Router or {MODEL_ROUTER!r}, got {router!r}")
    if options.use != "auto":
        return None
    return TrainedRouter() if router is None else router


def needed_prompts(options: SotOptions, router: Router | str | None) -> list[str]:
    """The prompt files that the options call for, beside those every set has."""
    needed = ["skeleton_after", "expand_after"] if options.dependencies else []
    needed += ["expand_group"] if options.points_per_request > 1 else []
    return needed + (["router"] if router == MODEL_ROUTER else [])


def decision(
    question: str, options: SotOptions, router: Router | str | None, room: Any = None
) -> Decision | None:
    """What options, router and room say; None where the model itself is to be asked."""
    if not isinstance(question, str) or not question.strip():
        raise RequestError(f"a question must be a text that is not empty, got {question!r}")
    if options.use == "off":
        return Decision(False, "it is off")
    if options.use == "on" or router is None:
        return Decision(True, "it is on")
    if isinstance(router, str):
        return None
    score = router.score(question)
    if score < router.threshold:
        reason = f"the router gives {score:.2f}, below {router.threshold:.2f}"
        return Decision(False, reason, score)
    if room is None:
        return Decision(True, f"the router gives {score:.2f}", score)
    found = room()
    return Decision(found.use_sot, f"the router gives {score:.2f}; {found.reason}", score)
