"""The engine over recorded answers: its own scheduling, rows, drafts by statistics and trees, with
reviews that are looked up and passes that are priced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cascade_engine.engine import Engine
from cascade_engine.engine.loading import Loaded, LoadReport
from cascade_engine.levels import NeuralLevel, StatisticalLevel, TokenRows
from cascade_engine.params import SamplingParams
from cascade_engine.policy import PlainDecoding, Policy
from cascade_engine.tune.costs import Measured, Priced
from cascade_engine.tune.levels import RecordedLevel
from cascade_engine.tune.recording import Recordings

ALL_AT_ONCE = 1 << 20


class Outcome(NamedTuple):
    """What a setting did, or would do."""

    tokens: int
    target_calls: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_call(self) -> float:
        return self.tokens / self.target_calls


class Task:
    """Prompts with the answers of a loaded engine's target; `rows` are decoded together."""

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], limit: int) -> None:
        self.engine = engine
        self.params = SamplingParams(max_tokens=limit)
        self.prompts = list(prompts)
        self.answers = [r.token_ids for r in engine.generate(self.prompts, self.params)]

    def run(self, policy: Policy) -> Outcome:
        """Really runs the models. Prompts are fed anew."""
        engine = self.engine
        engine.set_policy(policy)
        engine.reset_stats()
        results = engine.generate(self.prompts, self.params)
        stats = engine.stats()
        seconds = stats["step_seconds"] - stats["prefill_seconds"]
        calls = sum(result.stats.target_calls for result in results)
        return Outcome(sum(len(r.token_ids) for r in results), calls, seconds)


class Simulator:
    """An engine without models, over the answers of a task."""

    def __init__(self, task: Task, measured: Measured) -> None:
        self._task = task
        self.recordings = Recordings(task.prompts, task.answers, task.engine.neural[1:])
        self._costs, self._rest = measured.costs, measured.rest()
        self.engine = _engine(task.engine, self.recordings)

    @property
    def passes(self) -> int:
        """Of drafts, to know what they choose."""
        return sum(model.passes for model in self.recordings.models)

    def run(self, policy: Policy) -> Outcome:
        """What the policy would do and take."""
        priced = Priced(len(self.engine.neural), self._costs, self._rest)
        self.engine.set_policy(policy)
        self.engine.listeners.append(priced)
        try:
            results = self.engine.generate(self._task.prompts, self._task.params)
        finally:
            self.engine.listeners.remove(priced)
            self.recordings.let_go()
        calls = sum(result.stats.target_calls for result in results)
        return Outcome(sum(len(r.token_ids) for r in results), calls, priced.seconds)


def _engine(real: Engine, recordings: Recordings) -> Engine:
    """The same levels and rows, with recorded reviews."""
    slots, capacity = real.neural[0].rows.tokens.shape
    rows = TokenRows(slots, capacity)
    levels: list[NeuralLevel] = [
        RecordedLevel(level, i, rows, recordings) for i, level in enumerate(real.neural)
    ]
    statistical: StatisticalLevel = real.statistical.over(rows)
    loaded = Loaded(
        levels, statistical, rows, None, real.eos_ids, LoadReport((), 0, 0), Path(), None
    )
    return Engine(loaded, PlainDecoding(), reuse_cache=False, prefill_tokens=ALL_AT_ONCE)
