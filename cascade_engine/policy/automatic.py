"""The policy that finds its own setting, for each kind of input, and never loses to plain decoding.

It maximises expected tokens per second: the papers' expected walltime improvement (Leviathan et
al., arXiv 2211.17192; CS Drafting, arXiv 2312.11462, section 4) with measured acceptance by depth
and measured costs that grow with width and rows, in place of constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cascade_engine.cache_files import cache_file
from cascade_engine.errors import RequestError
from cascade_engine.policy.base import Action, LevelSet, RowState
from cascade_engine.policy.learner import CascadeLearner, Limits
from cascade_engine.policy.plans import PLAIN


@dataclass(frozen=True)
class AutoCascade:
    """Chooses levels, draft lengths, tree sizes and lenience while it runs.

    What it learns is kept in the `CascadeLearner` that an engine starts.

    cache: directory for what was learnt, a small file for each set of models and machine; "auto" is
    CASCADE_CACHE, else ~/.cache/cascade_engine; None keeps nothing. A file that is corrupt or
    of another machine is ignored, with a note (`CascadeLearner.note`).
    trees: whether trees may be reviewed.
    max_lenience: how lenient drafting levels may become (>= 1; 1: never).
    """

    cache: Path | str | None = "auto"
    trees: bool = True
    max_lenience: float = 3.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_lenience) and self.max_lenience >= 1.0):
            raise RequestError(
                f"max_lenience must be a finite number >= 1, got {self.max_lenience}"
            )

    @property
    def lenience(self) -> float:
        """Of an engine's first step; from then on `CascadeLearner.lenience`."""
        return 1.0

    def check(self, drafting_levels: int) -> None:
        """Any set of levels will do."""

    def next_action(self, row: RowState) -> Action:
        """Plain decoding: plans are made where it was started."""
        return PLAIN.next_action(row)

    def start(self, levels: LevelSet) -> CascadeLearner:
        path = cache_file(self.cache, "policy", levels.key)
        return CascadeLearner(levels, Limits(self.trees, self.max_lenience), path)
