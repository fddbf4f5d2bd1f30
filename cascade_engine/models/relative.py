"""T5's relative position bias (Raffel et al., arXiv 1910.10683, section 2.1): one learned number
per head and bucket of distances, added to the attention scores."""

from __future__ import annotations

import math

import torch

from cascade_engine.ops import RelativeBias


def buckets(offsets: torch.Tensor, both_ways: bool, count: int, max_distance: int) -> torch.Tensor:
    """The bucket of each `key position - query position`.

    Half of the buckets hold one distance each, the others ranges that grow with its logarithm up to
    `max_distance`. With `both_ways` later keys have half of all buckets for themselves; else they
    count as distance 0. The logarithm is float32's, whose rounding decides on which side of a
    border a distance falls.
    """
    if both_ways:
        count //= 2
        later = (offsets > 0).long() * count
        distances = offsets.abs()
    else:
        later = torch.zeros_like(offsets)
        distances = (-offsets).clamp(min=0)
    exact = count // 2
    grown = torch.log(distances.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    ranges = exact + (grown * (count - exact)).long()
    return later + torch.where(distances < exact, distances, ranges.clamp(max=count - 1))


def bias_by_offset(table: torch.Tensor, both_ways: bool, max_distance: int) -> RelativeBias:
    """The learned `table` `[buckets, heads]` spread out over offsets, for `attention`."""
    reach = max_distance
    offsets = torch.arange(-reach - RelativeBias.MARGIN, reach + RelativeBias.MARGIN + 1)
    index = buckets(offsets, both_ways, table.shape[0], max_distance)
    return RelativeBias(table.float()[index].T.contiguous(), reach)
