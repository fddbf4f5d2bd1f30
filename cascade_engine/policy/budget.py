"""What the automatic policy may spend on trying plans that look worse."""

from __future__ import annotations

LOST_SHARE = 0.006
"""Of the time: what trials may have cost beyond `LOST_PASSES`."""
LOST_PASSES = 10.0
"""Plain passes."""
SAVED_SHARE = 0.02
"""Of the time that drafting has saved, which may be lost as well."""


class TrialBudget:
    """Seconds that trials have lost, and that they may lose."""

    def __init__(self) -> None:
        self.lost = 0.0
        self._tokens = 0
        self._heard = 0.0

    def earned(self, tokens: int, seconds: float) -> None:
        """A step of all rows."""
        self._tokens += tokens
        self._heard += seconds

    def tried(self, tokens: int, seconds: float, usual: float) -> None:
        """A step under trial, where the best plan gives `usual` tokens per second."""
        self.lost = max(0.0, self.lost + seconds - tokens / usual)

    def left(self, clock: float, rows: int, plain: float) -> float:
        """Seconds, after `clock` seconds in all, where a plain pass over `rows` rows takes `plain`;
        < 0: no trial now."""
        saved = max(self._tokens / rows * plain - self._heard, 0.0)
        return LOST_SHARE * clock + SAVED_SHARE * saved + LOST_PASSES * plain - self.lost
