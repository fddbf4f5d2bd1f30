"""What the engine tells a trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from cascade_engine.engine.results import StepOutput
from cascade_engine.engine.row import NO_SLOT, Row
from cascade_engine.engine.watching import Watcher
from cascade_engine.levels import DraftedTree, ReviewItem, TokenRows, Verdict, shares_of
from cascade_engine.tokenizer import Tokenizer
from cascade_engine.trace.writer import TraceWriter

DIGITS = 6
"""Of a probability."""

Part = dict[str, Any]
"""What a pass did with one row."""


class Tracing(Watcher):
    """Turns what a cycle does into a trace; docs/trace.md has the events. `close` ends it, as does
    leaving `with`."""

    def __init__(
        self,
        writer: TraceWriter,
        tokens: TokenRows,
        tokenizer: Tokenizer | None,
        stop: Callable[[], None],
    ) -> None:
        self._writer = writer
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._pieces = [] if tokenizer is None else tokenizer.pieces()
        self._stop = stop
        self._open = True
        self._numbers: dict[Row, int] = {}
        """Of the rows that are not done."""
        self._rows = 0
        self._drafts: list[Part] = []
        """Of the pass that is under way."""
        self._reviews: dict[Row, Part] = {}
        """Of the pass that is under way, or of one that failed."""

    def __enter__(self) -> Tracing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the trace. Raises TraceError if it could not be written."""
        if self._open:
            self._open = False
            self._stop()
            self._writer.close()

    # What happens to rows

    def enqueued(self, rows: Sequence[Row]) -> None:
        for row in rows:
            number = self._numbers[row] = self._rows
            self._rows += 1
            prompt = row.prompt[: row.source] if row.source else row.prompt
            emitted: Sequence[int] = row.tokens[len(row.prompt) :]
            if row.slot != NO_SLOT:
                emitted = self._tokens.read(row.slot, len(row.prompt), row.final)
            self._name([*prompt, *emitted])
            params = row.params
            text = "" if self._tokenizer is None else self._tokenizer.decode(prompt)
            self._writer.add(
                "request",
                row=number,
                request=row.request_id,
                index=row.index,
                prompt=prompt,
                start=len(row.prompt),
                text=text,
                emitted=emitted,
                settings={
                    "max_tokens": params.max_tokens,
                    "temperature": params.temperature,
                    "seed": row.seed,
                    "acceptance": params.acceptance,
                },
            )

    def admitted(self, row: Row, cached: int) -> None:
        self._writer.add("admit", row=self._numbers[row], cached=cached)

    def preempted(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._writer.add("preempt", row=self._numbers[row])

    def dropped(self, row: Row) -> None:
        self._writer.add("drop", row=self._numbers.pop(row))

    def retired(self, row: Row, level: int) -> None:
        self._writer.add("retire", row=self._numbers[row], level=level)

    def emitted(self, row: Row, out: StepOutput) -> None:
        fields: dict[str, Any] = {
            "tokens": out.token_ids,
            "levels": [piece.level for piece in out.pieces],
            "texts": [piece.text for piece in out.pieces],
        }
        logprobs = [piece.logprobs.logprob for piece in out.pieces if piece.logprobs is not None]
        if logprobs:  # JSON has no infinity
            fields["logprobs"] = [round(p, DIGITS) if p > -math.inf else None for p in logprobs]
        number = self._numbers[row]
        if out.finish_reason is not None:
            fields["finish"] = out.finish_reason
            del self._numbers[row]
        self._writer.add("emit", row=number, **fields)

    # Passes: their rows first, then the pass

    def drafted(self, row: Row, count: int) -> None:
        tokens = self._tokens.read(row.slot, row.length - count, row.length)
        probs = self._tokens.read_probs(row.slot, row.length - count, row.length)
        self._drafts.append(self._part(row, row.length - count, tokens, probs))

    def branched(self, row: Row, root: int, tree: DraftedTree) -> None:
        parents = tree.parents.tolist()
        shares = shares_of(parents, tree.probs.tolist())
        self._drafts.append(self._part(row, root, tree.tokens.tolist(), shares, parents))

    def reviewing(self, rows: Sequence[Row], items: Sequence[ReviewItem]) -> None:
        self._reviews = {}
        for row, item in zip(rows, items, strict=True):
            at, tree = item.frontier, item.tree
            if tree is None:
                tokens = self._tokens.read(row.slot, at, item.length)
                probs = self._tokens.read_probs(row.slot, at, item.length)
                part = self._part(row, at, tokens, probs)
                part["sources"] = row.sources[at - len(row.prompt) :]
            else:
                part = self._part(row, at, tree.tokens, tree.probs, tree.parents)
                part["sources"] = list(tree.sources)
            self._reviews[row] = part

    def settled(self, row: Row, item: ReviewItem, verdict: Verdict) -> None:
        part = self._reviews[row]
        own = item.frontier + verdict.num_accepted
        kept = range(verdict.num_accepted) if item.tree is None else verdict.path
        part["kept"], part["token"] = list(kept), verdict.token
        part["prob"] = round(self._tokens.read_probs(row.slot, own, own + 1)[0], DIGITS)
        self._name([verdict.token])
        if verdict.siblings:
            self._name(token for each in verdict.siblings for token, _ in each)
            part["siblings"] = [
                [[token, round(prob, DIGITS)] for token, prob in each] for each in verdict.siblings
            ]

    def passed(self, kind: str, level: int, begin: float, seconds: float) -> None:
        parts = self._drafts if kind == "draft" else list(self._reviews.values())
        self._writer.add(kind, begin, seconds, level=level, rows=parts)
        self._drafts, self._reviews = [], {}

    def prefilled(self, row: Row, start: int, end: int, begin: float, seconds: float) -> None:
        number = self._numbers[row]
        self._writer.add("prefill", begin, seconds, row=number, begin=start, end=end)

    def stepped(self, begin: float, seconds: float) -> None:
        self._writer.add("step", begin, seconds)
        self._writer.flush()

    def _part(
        self,
        row: Row,
        at: int,
        tokens: Sequence[int],
        probs: Sequence[float],
        parents: Sequence[int] | None = None,
    ) -> Part:
        self._name(tokens)
        part: Part = {"row": self._numbers[row], "at": at, "tokens": list(tokens)}
        if parents is not None:
            part["parents"] = list(parents)
        part["probs"] = [round(prob, DIGITS) for prob in probs]
        return part

    def _name(self, tokens: Iterable[int]) -> None:
        if self._tokenizer is None:
            return
        unnamed = self._writer.unnamed(tokens)
        if unnamed:
            self._writer.name({token: self._shown(token) for token in unnamed})

    def _shown(self, token: int) -> str:
        """A token's text; of marks and parts of characters, the piece."""
        assert self._tokenizer is not None
        text = self._tokenizer.decode([token], continues=True)
        if (not text or "\ufffd" in text) and token < len(self._pieces):
            return self._pieces[token]
        return text
