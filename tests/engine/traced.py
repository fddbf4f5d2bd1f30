"""What a trace must tell: the tokens over again, and the counts of the engine."""

from __future__ import annotations

from cascade_engine import Engine
from cascade_engine.trace import History, statistics
from cascade_engine.trace.history import TracedRow


def replayed(row: TracedRow, fails: bool = False) -> list[int]:
    """The row's tokens behind its prompt, worked out from its drafts and reviews alone.

    Fails unless each action meets the row that the actions before it left. `fails`: a pass of the
    target may fail, after which it reviews the rows without their drafts."""
    final = [*row.prompt[: row.start], *row.emitted]
    if len(row.prompt) != row.start:  # an encoder reads the prompt
        final = [-1] * row.start + row.emitted
    for this in row.rounds:
        state, cut = list(final), False
        for action in this.actions:
            chain = isinstance(action.parents, range)
            assert action.kind == "retire" or len(final) <= action.at <= len(state)
            if cut and chain:  # what the failed level had to review is gone
                state = state[: action.at + len(action.tokens) * (action.kind == "review")]
            cut = action.kind == "retire"
            if fails and action.level == 0 and not action.tokens:
                state = final[:]
            if action.kind == "draft" and chain:
                assert action.at == len(state)
                state += action.tokens
            elif action.kind == "review":
                assert not chain or action.tokens == state[action.at :]
                kept = [action.tokens[node] for node in action.kept]
                assert action.token is not None
                state = [*state[: action.at], *kept, action.token]
        if this.tokens:
            assert this.actions[-1].level == 0
            assert state[len(final) :][: len(this.tokens)] == this.tokens
            final += this.tokens
    return final[row.start :]


def check_statistics(history: History, engine: Engine) -> None:
    counted = statistics(history)
    expected = {key: value for key, value in engine.stats().items() if key in counted}
    assert counted == expected
