"""How often the automatic policy listens and plans: both take microseconds, as steps may."""

from __future__ import annotations

from collections.abc import Sequence

from cascade_engine.policy.base import OutputSeen

LISTENING = 0.4
"""Of the time of a look, what it takes to hear of a step, about: both grow with rows and levels."""
LISTENING_SHARE = 0.01
"""Of the time, that this may take; beyond it steps pass unheard."""
LONGEST_PAUSE = 16, 48
"""Steps unheard in a row, at most: while rows draft, and while they decode plainly."""
LOOK_SHARE = 0.01
"""Of the time, that looks may take."""
PATIENCE = 4, 48
"""Steps between two looks at most: while rows draft, and while they decode plainly."""


class Pace:
    """Says when to listen and when to look. `steps` are the engine's so far."""

    def __init__(self, first_look: int) -> None:
        self.listening = True
        self.look_seconds = 2e-5
        self._next_listen = self._longer = 0
        self._next_look = first_look
        self._interval = 1

    def wakes(self, steps: int, outputs: Sequence[OutputSeen]) -> None:
        """After an unheard step: whether the next one is to be heard. Where rows end other text may
        come, and the pause of plain decoding is as long as any other."""
        if self._next_listen - steps > self._longer:
            return
        self.listening = steps >= self._next_listen
        for out in outputs:
            if out.finish_reason is not None:
                self.listening = True

    def heard(self, steps: int, seconds: float, plain: bool, eager: bool) -> None:
        """A step of so many seconds was heard. Those after it tell little if they are plain; the
        next one is wanted in any case if `eager`."""
        pause = 0
        if not eager and steps > 32:
            cost = LISTENING * self.look_seconds
            pause = min(int(cost / max(LISTENING_SHARE * seconds, 1e-9)), LONGEST_PAUSE[0])
            pause = LONGEST_PAUSE[1] if pause and plain else pause
        self._longer = max(pause - LONGEST_PAUSE[0], 0)
        self._next_listen = steps + pause
        self.listening = pause == 0

    def is_due(self, steps: int) -> bool:
        return steps >= self._next_look

    def looked(self, steps: int, spent: float, seconds: float, plain: bool, changed: bool) -> None:
        """A look took `spent` seconds where steps take `seconds`; it found plain decoding best, and
        something else than the one before."""
        # A look may have been interrupted: one is taken to be about as long as those before.
        self.look_seconds += 0.2 * (min(spent, 3.0 * self.look_seconds) - self.look_seconds)
        self._interval = 2 if changed else min(self._interval + 2, PATIENCE[plain])
        least = self.look_seconds / max(LOOK_SHARE * seconds, 1e-9)
        self._next_look = steps + max(self._interval, min(int(least) + 1, PATIENCE[1]))

    def look_soon(self, steps: int) -> None:
        self._next_look = steps


class Around:
    """Seconds of a step outside of its passes: `overhead` for each pass, and each row in it."""

    def __init__(self) -> None:
        self.overhead = 0.0
        self.passes = 0
        """Of the present step: passes and rows in them."""
        self._inside = 0.0

    def passed(self, rows: int, seconds: float) -> None:
        self.passes += 1 + rows
        self._inside += seconds

    def stepped(self, seconds: float) -> None:
        """A step of so many seconds, of passes that were all told before."""
        rest = max(seconds - self._inside, 0.0) / self.passes
        if self.overhead:
            rest = min(rest, 3.0 * self.overhead)
        self.overhead += 0.05 * (rest - self.overhead)
        self.passes, self._inside = 0, 0.0
