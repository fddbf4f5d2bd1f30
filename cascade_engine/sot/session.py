"""One question on its way: skeleton, points, answer (Ning et al., arXiv 2307.15337, section 2).

A session does nothing by itself. It says which requests to make next and is told what came of them,
so that engines and endpoints, one question or many, run the same code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence

from cascade_engine.sot.jobs import Job, Outcome, Stage
from cascade_engine.sot.options import SotOptions
from cascade_engine.sot.plan import Skeleton, skeleton_of
from cascade_engine.sot.prompts import PromptSet
from cascade_engine.sot.results import (
    ORDINARY,
    SKELETON,
    Decision,
    Expansion,
    SotPiece,
    SotResult,
    StageStats,
    expansion_of,
)

_LETTER = re.compile(r"\b([ABC])\b")
GROUP_MARK = re.compile(r"\n\s*(?:\*\*)?(\d{1,3})[.)]")


class Session:
    """A question with its decision; `start`, then `finish` for every request until `result`.

    `decision` None: the model itself is asked first (the prompt router); the answer "A" is yes, and
    `has_room` is asked after it. `marks` are texts by which the chat format tells who speaks: what
    the model wrote is shown to it without them.
    """

    def __init__(
        self,
        question: str,
        prompts: PromptSet,
        options: SotOptions,
        decision: Decision | None,
        has_room: Callable[[], Decision] | None = None,
        marks: Sequence[str] = (),
    ) -> None:
        self.question = question
        self._prompts = prompts
        self._options = options
        self.decision = decision or Decision(False, "not decided")
        self._ask_router = decision is None
        self._has_room = has_room
        self._marks = marks
        self._jobs = 0
        self._open: set[int] = set()
        self._begin = time.perf_counter()
        self._stages: dict[str, StageStats] = {}
        self._stage_begin: dict[str, float] = {}
        self._skeleton = Skeleton(())
        self._skeleton_text = ""
        self._expansions: dict[int, Expansion] = {}
        self._asked: set[int] = set()
        self._notes: list[str] = []
        self._reason = ""
        self._seconds = 0.0

    # For drivers

    def start(self) -> list[Job]:
        """The first requests. Raises RequestError for a question that the prompts refuse."""
        if self._ask_router:
            return [self._job("router", "router", {}, 4)]
        return self._decided(self.decision)

    def piece(self, job: Job, text: str) -> SotPiece | None:
        """What a consumer sees of newly written text."""
        if not text or job.stage == "router" or len(job.points) > 1:
            return None
        if job.stage == "point":
            return SotPiece(job.points[0], text)
        return SotPiece(SKELETON if job.stage == "skeleton" else ORDINARY, text)

    def opening(self, job: Job) -> SotPiece | None:
        """What a consumer sees of a request before anything is written."""
        if job.stage == "point" and len(job.points) == 1:
            return SotPiece(job.points[0], job.prompt.shown)
        return SotPiece(SKELETON, job.prompt.begin) if job.stage == "skeleton" else None

    def finish(self, job: Job, outcome: Outcome) -> tuple[list[SotPiece], list[Job]]:
        """A request has ended: what there is to see of it now, and the requests that follow."""
        stage = self._stage(job)
        stage.add(outcome)
        stage.seconds = time.perf_counter() - self._stage_begin[stage.name]
        self._open.remove(job.number)
        pieces: list[SotPiece] = []
        if job.stage == "router":
            jobs = self._decided(self._routed(outcome))
        elif job.stage == "skeleton":
            jobs = self._with_skeleton(job.prompt.begin + outcome.text, outcome)
        elif job.stage == "ordinary":
            self._expansions[ORDINARY] = expansion_of(ORDINARY, "", job, outcome)
            jobs = []
        else:
            pieces = self._take_points(job, outcome)
            jobs = self._ready_points()
        if not self._open:
            self._seconds = time.perf_counter() - self._begin
        return pieces, jobs

    @property
    def is_done(self) -> bool:
        return not self._open and self._jobs > 0

    def result(self) -> SotResult:
        """What there is so far; complete when `is_done`."""
        ordinary = self._expansions.get(ORDINARY)
        points = [self._expansions[i] for i in sorted(self._expansions) if i > 0]
        used = ordinary is None and self.decision.use_sot
        text = "\n".join(e.text for e in points) if ordinary is None else ordinary.text
        return SotResult(
            question=self.question,
            decision=self.decision,
            used_sot=used,
            reason=self._reason or self.decision.reason,
            text=text,
            skeleton=self._skeleton,
            skeleton_text=self._skeleton_text,
            expansions=points if ordinary is None else [ordinary],
            stages=list(self._stages.values()),
            seconds=self._seconds or time.perf_counter() - self._begin,
            notes=[*self._skeleton.notes, *self._notes],
        )

    # Inside

    def _decided(self, decision: Decision) -> list[Job]:
        if decision.use_sot and self._ask_router and self._has_room is not None:
            room = self._has_room()
            if not room.use_sot:
                decision = Decision(False, room.reason, decision.score)
        self.decision = decision
        if not decision.use_sot:
            return self._ordinary(decision.reason)
        name = "skeleton_after" if self._options.dependencies else "skeleton"
        return [self._job("skeleton", name, {}, self._options.skeleton_tokens)]

    def _routed(self, outcome: Outcome) -> Decision:
        if outcome.error is not None:
            return Decision(False, f"the router's request failed: {outcome.error}")
        letter = _LETTER.search(outcome.text.upper())
        if letter is None:
            return Decision(False, f"the model as router said {outcome.text.strip()!r}")
        says = f"the model as router said {letter.group(1)}"
        # B asks for points that depend on each other: it suits where those are written in waves.
        suits = letter.group(1) == "A" or (letter.group(1) == "B" and self._options.dependencies)
        return Decision(suits, says)

    def _ordinary(self, reason: str) -> list[Job]:
        self._reason = reason
        return [self._job("ordinary", "answer", {}, self._options.params.max_tokens)]

    def _with_skeleton(self, text: str, outcome: Outcome) -> list[Job]:
        self._skeleton_text = text
        if outcome.error is not None:
            return self._ordinary(f"the skeleton's request failed: {outcome.error}")
        self._skeleton = skeleton_of(text, self._options.max_points)
        if outcome.finish_reason == "length":
            self._notes.append(
                f"the skeleton was cut at skeleton_tokens={self._options.skeleton_tokens}"
            )
        found = len(self._skeleton.points)
        if found < self._options.min_points:
            return self._ordinary(
                f"the skeleton has {found} points, fewer than {self._options.min_points}"
            )
        self._reason = self.decision.reason
        depends = any(point.after for point in self._skeleton.points)
        if depends and "expand_after" not in self._prompts.files:
            self._notes.append("these prompts have no expand_after.txt: points see no others' text")
        return self._ready_points()

    def _ready_points(self) -> list[Job]:
        """Requests for the points whose ancestors are all written."""
        ready = [
            point.index
            for point in self._skeleton.points
            if point.index not in self._asked and set(point.after) <= set(self._expansions)
        ]
        self._asked.update(ready)
        plain = [i for i in ready if not self._skeleton.points[i - 1].after]
        size = self._options.points_per_request
        groups = [plain[i : i + size] for i in range(0, len(plain), size)]
        groups += [[i] for i in ready if i not in plain]
        return [self._point_job(group) for group in sorted(groups)]

    def _point_job(self, group: Sequence[int]) -> Job:
        first = self._skeleton.points[group[0] - 1]
        values = {
            "skeleton": self._unmarked(self._skeleton.text),
            "index": str(first.index),
            "point": self._unmarked(first.text),
            "indices": ", ".join(map(str, group)),
            "next": str(group[-1] + 1),
        }
        name = "expand" if len(group) == 1 else "expand_group"
        if first.after and "expand_after" in self._prompts.files:
            name = "expand_after"
            ancestors = self._skeleton.ancestors(first.index)
            values["ancestors"] = self._unmarked(
                "\n".join(self._expansions[i].text for i in ancestors)
            )
        tokens = self._options.point_tokens * len(group)
        return self._job("point", name, values, tokens, tuple(group))

    def _unmarked(self, text: str) -> str:
        """A model's text with every mark of a turn broken by a blank."""
        for mark in self._marks:
            text = text.replace(mark, f"{mark[:-1]} {mark[-1]}")
        return text

    def _take_points(self, job: Job, outcome: Outcome) -> list[SotPiece]:
        if len(job.points) == 1:
            index = job.points[0]
            self._expansions[index] = expansion_of(index, job.prompt.shown, job, outcome)
            return []
        parts = _split_group(job, outcome)
        for index, part in parts.items():
            self._expansions[index] = part
        return [SotPiece(index, part.text) for index, part in parts.items()]

    def _job(
        self,
        stage: Stage,
        prompt: str,
        values: Mapping[str, str],
        max_tokens: int,
        points: tuple[int, ...] = (),
    ) -> Job:
        filled = self._prompts.prompt(prompt, {"question": self.question, **values})
        job = Job(self._jobs, stage, filled, max_tokens, points)
        self._jobs += 1
        self._open.add(job.number)
        self._stage_begin.setdefault(self._stage(job).name, time.perf_counter())
        return job

    def _stage(self, job: Job) -> StageStats:
        name = {"point": "points"}.get(job.stage, job.stage)
        return self._stages.setdefault(name, StageStats(name))


def _split_group(job: Job, outcome: Outcome) -> dict[int, Expansion]:
    """An answer that writes several points, as those points; one that it left out is a failure."""
    text = f"\n{job.prompt.begin}{outcome.text}"
    again = GROUP_MARK.match(f"\n{outcome.text.lstrip()}")
    if again is not None and int(again.group(1)) == job.points[0]:
        text = f"\n{outcome.text.lstrip()}"
    begins: dict[int, tuple[int, int]] = {}
    waiting = list(job.points)
    for match in GROUP_MARK.finditer(text):
        number = int(match.group(1))
        if number in waiting:
            begins[number] = (match.start(), match.start())
            waiting = waiting[waiting.index(number) + 1 :]
    order = sorted(begins, key=lambda number: begins[number])
    found: dict[int, Expansion] = {}
    for number, following in zip(order, [*order[1:], None], strict=True):
        end = len(text) if following is None else begins[following][0]
        found[number] = Expansion(
            number,
            text[begins[number][0] : end].strip(),
            outcome.finish_reason if following is None else "stop",
            outcome.error if following is None else None,
        )
    for number in job.points:
        if number not in found:
            reason = outcome.error or "the answer to a request for several points left it out"
            found[number] = Expansion(number, "", "error", reason)
    return {number: found[number] for number in job.points}
