"""What the automatic policy knows and how it chooses, natively: a look takes microseconds.

PassCosts: times of passes (csrc/include/ce/pass_costs.h). Knowledge: acceptance by reviewer and
source over all rows; RowRecord: of one row (csrc/include/ce/acceptance.h). Planner: what plans are
expected to give and to take, which to follow, and which to try (csrc/include/ce/planner.h).
"""

from cascade_engine._C import (
    TREE_SIZES,
    Choice,
    Estimate,
    Knowledge,
    PassCosts,
    Planner,
    RowRecord,
    row_bucket,
)

__all__ = [
    "TREE_SIZES",
    "Choice",
    "Estimate",
    "Knowledge",
    "PassCosts",
    "Planner",
    "RowRecord",
    "row_bucket",
]
