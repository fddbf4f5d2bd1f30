"""Which drafts, lengths, early stops, lenience and trees: a search over simulated settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cascade_engine.errors import RequestError
from cascade_engine.policy import FixedCascade
from cascade_engine.tune.simulate import Outcome, Simulator

FIRST = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Tokens that a draft vouches for before the target reviews."""
INNER = (0, 1, 2, 3, 4, 6, 8)
"""The same, before a larger draft reviews."""
COPIED = (0, 2, 3, 4, 6, 8, 10, 14)
"""Tokens of the statistical level that are reviewed at a time."""
LENIENCE = (1.0, 1.5, 2.0, 3.0, 5.0)
TREES = (0, 4, 8, 12, 16, 24, 32, 48, 64)
SIBLINGS = (0, 1, 2, 3)
CONFIDENCE = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
"""At which drafts end early."""
COPY = 0
"""Stands for the statistical level among the drafts' numbers."""


class Candidate(NamedTuple):
    """A setting for the levels it uses. `drafts`: their numbers, 1 for the largest."""

    drafts: tuple[int, ...]
    policy: FixedCascade

    def over(self, levels: int) -> FixedCascade:
        """The same setting where `levels` drafting levels are loaded: the others are not asked."""
        used = [draft - 1 for draft in self.drafts] + [levels - 1]
        matrix = [[0] * levels for _ in range(levels)]
        trees = [0] * levels
        # Row i + 1 belongs to draft i; row 0 to the target.
        rows = [0, *(draft for draft in self.drafts)]
        for i, row in enumerate(rows):
            for j, column in enumerate(used):
                matrix[row][column] = self.policy.k_matrix[i][j]
            trees[row] = self.policy.tree[i]
        matrix[-1][-1] = matrix[-1][-1] or self.policy.k_matrix[-1][-1]
        given = self.policy
        return FixedCascade(matrix, given.lenience, trees, given.siblings, given.min_confidence)


PLAIN = Candidate((), FixedCascade([[0]]))
"""No speculation."""


class Found(NamedTuple):
    """A setting with what the simulation says of it."""

    candidate: Candidate
    outcome: Outcome


def search(
    simulator: Simulator, drafts: int, trials: int, seed: int, lenience: bool = True
) -> list[Found]:
    """Distinct settings in the order of expected tokens per second, best first. `drafts` are
    loaded."""
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, Found] = {}

    def objective(trial: Any) -> float:
        candidate = candidate_of(trial, drafts, lenience)
        key = repr(candidate)
        if key not in found:
            found[key] = Found(candidate, simulator.run(candidate.over(drafts + 1)))
        return found[key].outcome.tokens_per_second

    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(10, trials // 4))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for start in starts(drafts):
        study.enqueue_trial(start)
    study.optimize(objective, n_trials=trials)
    return sorted(found.values(), key=lambda f: -f.outcome.tokens_per_second)


def starts(drafts: int) -> list[dict[str, Any]]:
    """Settings to begin with: no draft at all, copying alone, and each draft with copying below."""
    off = {f"draft {i}": False for i in range(1, drafts + 1)}
    found: list[dict[str, Any]] = [
        {**off, "copied for the target": 0, "tree": 0},
        {**off, "copied for the target": 8, "tree": 0},
        {**off, "copied for the target": 0, "tree": 16},
    ]
    for i in range(1, drafts + 1):
        found.append(
            {
                **off, f"draft {i}": True, f"target from {i}": 6, f"copied for {i}": 8,
                "copied for the target": 0, "tree": 0, "lenience": 1.0, "min confidence": 0.0,
            }
        )  # fmt: skip
    return found


def candidate_of(trial: Any, drafts: int, lenience: bool) -> Candidate:
    """A setting from what optuna suggests. Drafts that nobody asks are left out, and so is what
    changes nothing."""
    asked = range(1, drafts + 1)
    given = [i for i in asked if trial.suggest_categorical(f"draft {i}", (True, False))]
    tokens = {(0, j): trial.suggest_categorical(f"target from {j}", FIRST) for j in given}
    for i in given:
        for j in given[given.index(i) + 1 :]:
            tokens[i, j] = trial.suggest_categorical(f"{i} from {j}", INNER)
        tokens[i, COPY] = trial.suggest_categorical(f"copied for {i}", COPIED)
    tree = trial.suggest_categorical("tree", TREES)
    if not tree:
        tokens[0, COPY] = trial.suggest_categorical("copied for the target", COPIED)
    used: list[int] = []
    for j in given:
        if any(tokens[i, j] for i in (0, *used)):
            used.append(j)
    rows = [0, *used]
    matrix = [[tokens.get((i, j), 0) for j in (*used, COPY)] for i in rows]
    reviews = any(any(row) for row in matrix[1:])
    lenient = trial.suggest_categorical("lenience", LENIENCE) if reviews and lenience else 1.0
    siblings = trial.suggest_categorical("siblings", SIBLINGS) if used and tree else 0
    least = trial.suggest_categorical("min confidence", CONFIDENCE) if used else 0.0
    return Candidate(tuple(used), FixedCascade(matrix, lenient, tree, siblings, least))


def frontier(found: Sequence[Found]) -> list[Found]:
    """Settings that none beats in both tokens per second and tokens per target call; fastest
    first."""
    best: list[Found] = []
    for each in sorted(found, key=lambda f: -f.outcome.tokens_per_second):
        if not best or each.outcome.tokens_per_call > best[-1].outcome.tokens_per_call:
            best.append(each)
    return best


def require_optuna() -> Any:
    """The optuna module. Raises RequestError that names the extra where it is absent."""
    try:
        import optuna
    except ImportError:
        raise RequestError("tuning needs optuna: pip install 'cascade_engine[tune]'") from None
    return optuna
