"""What speculation is expected to gain, from acceptance rates and costs.

`acceptance` is the chance that a reviewer keeps a drafted token, taken as the same for every token
and independent (the assumption of Leviathan et al., arXiv 2211.17192, section 3). `cost` is the
time of one pass of a level over that of one pass of the target.
"""

from __future__ import annotations


def expected_tokens(acceptance: float, drafted: int) -> float:
    """Tokens that one review of `drafted` tokens yields, the reviewer's own included:
    (1 - a^(d + 1)) / (1 - a) (Leviathan et al., equation 1)."""
    if acceptance == 1.0:
        return float(drafted + 1)
    return float((1.0 - acceptance ** (drafted + 1)) / (1.0 - acceptance))


def review_generating_function(acceptance: float, drafted: int, x: float) -> float:
    """E[x^T] where T is the number of tokens that one review of `drafted` tokens yields:
    1 + (x - 1) (1 - (a x)^(d + 1)) / (1 - a x) (CS Drafting, arXiv 2312.11462, appendix)."""
    ratio = acceptance * x
    if ratio == 1.0:
        return 1.0 + (x - 1.0) * (drafted + 1)
    return float(1.0 + (x - 1.0) * (1.0 - ratio ** (drafted + 1)) / (1.0 - ratio))


def walltime_improvement(
    acceptance: float, drafted: int, cost: float, review_cost: float = 1.0
) -> float:
    """Expected walltime improvement factor (EWIF) over plain decoding of one draft that writes
    `drafted` tokens one by one: expected tokens / (d c + r).

    The papers take a review to cost what one token costs, `review_cost` = 1.
    """
    return expected_tokens(acceptance, drafted) / (drafted * cost + review_cost)


def review_cost(
    width: float, rows: int = 1, token_cost: float = 0.0, knee: float = 16.0, beyond: float = 0.0
) -> float:
    """Time of a pass of `rows` rows over `width` tokens each, over that of one row's one token: as
    long as weights are what it waits for, a token adds the share `token_cost`; beyond `knee` tokens
    over all rows, where arithmetic is, the share `beyond`."""
    tokens = rows * width
    return 1.0 + token_cost * (min(tokens, knee) - 1.0) + beyond * max(tokens - knee, 0.0)


def batch_improvement(
    acceptance: float,
    drafted: int,
    cost: float,
    rows: int,
    token_cost: float,
    knee: float = 16.0,
    beyond: float = 0.0,
) -> float:
    """EWIF of one draft for `rows` rows that share each pass, over plain decoding of as many rows:
    the papers' formula with a review that costs more the more rows and tokens it has."""
    shape = (token_cost, knee, beyond)
    step = review_cost(1.0, rows, *shape)
    spent = drafted * cost * step + review_cost(drafted + 1.0, rows, *shape)
    return expected_tokens(acceptance, drafted) * step / spent


def cascade_tokens(acceptance: float, reviews: int, inner: float, drafted: int) -> float:
    """Tokens of a target pass whose draft was written in `reviews` reviews of a draft model, each
    of `drafted` tokens that it keeps with chance `inner` (the vertical cascade of CS Drafting):
    (1 - a g(a)^n) / (1 - a), with g the generating function of one such review."""
    if acceptance == 1.0:
        return reviews * expected_tokens(inner, drafted) + 1.0
    written = review_generating_function(inner, drafted, acceptance) ** reviews
    return float((1.0 - acceptance * written) / (1.0 - acceptance))


def cascade_improvement(
    acceptance: float,
    reviews: int,
    inner: float,
    drafted: int,
    cost: float,
    inner_cost: float = 0.0,
    review_cost: float = 1.0,
) -> float:
    """EWIF of that cascade: its tokens / (n c + n d c' + r), with c' the cost of a token of the
    lowest level (a table's is next to nothing)."""
    spent = reviews * (cost + drafted * inner_cost) + review_cost
    return cascade_tokens(acceptance, reviews, inner, drafted) / spent
