"""A row's part in a call of a level: what it is to draft, or what of it is to be reviewed."""

from __future__ import annotations

from cascade_engine.engine.row import Row
from cascade_engine.levels import (
    DraftItem,
    LogprobRequest,
    Rejection,
    ReviewItem,
    SegmentItem,
    TokenRows,
    TokenTree,
)
from cascade_engine.policy import Draft, Segment


def review_item(
    row: Row, level: int, tokens: TokenRows, tree: TokenTree | None = None, siblings: int = 0
) -> ReviewItem:
    """A row's part in a review, which counts as one of its `reviews` from now on; asks the
    request's allowed_tokens.

    What they raise about the target's frontier is raised, as plain decoding would; what they
    raise about a draft costs the draft."""
    frontier = row.frontier[level]
    allowed = None
    unanswered: frozenset[int] = frozenset()
    if row.allowed is not None:
        known = tokens.read(row.slot, 0, row.length)
        drafted = known[frontier:] if tree is None else tree.tokens
        parents = range(-1, len(drafted) - 1) if tree is None else tree.parents
        allowed, errors = row.allowed.along(known[:frontier], drafted, parents)
        if level == 0:
            if -1 in errors:
                raise errors[-1]
            unanswered = frozenset(errors)
    rejection = rejection_of(row, level)
    row.reviews += 1
    return ReviewItem(
        row.slot,
        frontier,
        row.length,
        row.sampler,
        allowed,
        logprob_request(row, level),
        tree,
        siblings,
        unanswered,
        rejection,
    )


def logprob_request(row: Row, level: int) -> LogprobRequest | None:
    """What a level's reviews of a row have to tell of log-probabilities."""
    top = row.params.logprobs
    if level or top is None:
        return None
    return LogprobRequest(top, row.params.processed_logprobs)


def rejection_of(row: Row, level: int) -> Rejection | None:
    """What a level's next review of a row has to know if it goes by the rejection rule."""
    if not row.sampler.rejects:
        return None
    return Rejection(row.reviews, level > 0, row.length - row.frontier[level])


def draft_item(row: Row, action: Draft) -> DraftItem:
    """A row's part where a neural level drafts on its own."""
    least = action.min_confidence
    return DraftItem(row.slot, row.length, action.tokens, row.sampler, row.reviews, least)


def segment_item(row: Row, segment: Segment) -> SegmentItem:
    """A row's part where a neural level drafts with the statistics below it."""
    return SegmentItem(
        row.slot,
        row.length,
        segment.tokens,
        segment.most,
        segment.width,
        segment.least,
        row.sampler,
        row.reviews,
        row.prediction,
        segment.min_confidence,
    )
