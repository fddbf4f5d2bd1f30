"""The bars that figures are judged by, and the table that says which are met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LARGE, SMALL = "110m", "15m"


@dataclass(frozen=True)
class Bar:
    """A limit on one figure of a report. `path`: the keys that lead to a number or to quantiles,
    whose median counts. `shapes`, `dtypes`: where the bar holds."""

    name: str
    path: tuple[str, ...]
    limit: float
    at_most: bool
    shapes: tuple[str, ...] = (LARGE,)
    dtypes: tuple[str, ...] = ("bf16",)

    def value(self, report: Mapping[str, Any]) -> float | None:
        """The report's figure, None where it was not measured."""
        found: Any = report
        for key in self.path:
            if not isinstance(found, Mapping) or found.get(key) is None:
                return None
            found = found[key]
        return float(found["median"] if isinstance(found, Mapping) else found)

    def judge(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """`pass` is None where the figure was not measured."""
        value = self.value(report)
        met = None
        if value is not None:
            met = value <= self.limit if self.at_most else value >= self.limit
        sign = "<=" if self.at_most else ">="
        return {"name": self.name, "value": value, "bar": f"{sign} {self.limit}", "pass": met}


BOTH, FLOATS, ALL = (LARGE, SMALL), ("bf16", "f32"), ("bf16", "f32", "int8")
DECODE_BARS = (
    Bar("plain decoding, time ours / llama.cpp", ("ours_over_llamacpp", "1"), 0.65, True, BOTH),
    Bar(
        "plain decoding, bytes per second / best read kernel's",
        ("fraction_of_read_bandwidth",),
        0.80,
        False,
        dtypes=ALL,
    ),
    Bar("review(8) / decode(1)", ("review_over_decode", "8"), 1.20, True),
    Bar("review(16) / decode(1)", ("review_over_decode", "16"), 1.40, True),
    Bar("review(32) / decode(1)", ("review_over_decode", "32"), 2.3, True),
    *(
        Bar(
            f"uncompressed: review({k}) / decode(1)",
            ("forms", "uncompressed", "review_over_decode", str(k)),
            limit,
            True,
        )
        for k, limit in ((8, 1.20), (16, 1.40), (32, 2.3))
    ),
    *(
        Bar(
            f"review({k}), time ours / llama.cpp",
            ("ours_over_llamacpp", str(k)),
            0.5,
            True,
            BOTH,
            FLOATS,
        )
        for k in (8, 16, 32)
    ),
    Bar("decoding, time bf16 / int8", ("bf16_over_ours", "1"), 1.7, False, dtypes=("int8",)),
    Bar("review(16), time bf16 / int8", ("bf16_over_ours", "16"), 1.0, False, dtypes=("int8",)),
    Bar("prefill of 512, time transformers / ours", ("prefill_over_ours", "hf"), 1.4, False),
    Bar("time outside native code", ("outside_native", "share"), 0.10, True, dtypes=ALL),
    Bar("time outside native code", ("outside_native", "share"), 0.25, True, (SMALL,), ALL),
    Bar("memory / (weights + cache)", ("memory", "over_weights_and_cache"), 1.1, True, BOTH, ALL),
)
OPS_BARS = (
    Bar(
        "attention, context 8192, 1 row of 1 token: bytes per second / read ceiling",
        ("fraction_of_ceiling", "attention 1x1@8192"),
        0.6,
        False,
        BOTH,
        FLOATS,
    ),
    Bar(
        "attention, context 8192, 1 row of 16 tokens: time torch / ours",
        ("torch_over_ours", "attention 1x16@8192"),
        2.0,
        False,
        BOTH,
        FLOATS,
    ),
    Bar(
        "attention, context 8192, 16 rows of 1 token: time torch / ours",
        ("torch_over_ours", "attention 16x1@8192"),
        2.0,
        False,
        BOTH,
        FLOATS,
    ),
)

GPU_SHAPE = ("7b",)


def _streams(name: str, share: float) -> tuple[Bar, Bar]:
    """Bytes per second beside the ceiling's, and torch's time."""
    return (
        Bar(f"{name}: share", ("fraction_of_ceiling", name), share, False, GPU_SHAPE),
        Bar(f"{name}: torch / ours", ("torch_over_ours", name), 1.0, False, GPU_SHAPE),
    )


LINEAR_SHARES = {"1x1": 0.85, "16x1": 0.85, "64x1": 0.75}
CUDA_OPS_BARS = (
    *(
        bar
        for matrix in ("4096x4096", "11008x4096", "4096x11008", "32000x4096")
        for size, share in LINEAR_SHARES.items()
        for bar in _streams(f"linear {size} {matrix}", 0.65 if matrix == "4096x4096" else share)
    ),
    *(
        bar
        for size in ("16x1@4096", "16x16@4096", "16x1@32768", "16x16@32768")
        for bar in _streams(f"attention {size} 32/32 heads", 0.80)
    ),
    *(
        Bar(
            f"attention {size} 32/32 heads: flashinfer / ours",
            ("flashinfer_over_ours", f"attention {size} 32/32 heads"),
            1.0,
            False,
            GPU_SHAPE,
        )
        for size in ("16x1@4096", "16x16@4096", "16x1@32768", "16x16@32768")
    ),
    *(
        Bar(f"{name}: ms", ("milliseconds", name), limit, True, GPU_SHAPE)
        for name, limit in {
            "ngram 64x1@32768": 0.010,
            "accept 64x1 greedy": 0.020,
            "accept 64x1 temperature": 0.040,
            "accept 64x1 top-p": 0.100,
            "commit 1x4": 0.010,
        }.items()
    ),
)

EMBEDDED_SHAPE = ("embedded",)


def _generation_bar(name: str, rows: int, path: tuple[str, ...], limit: float) -> Bar:
    return Bar(f"{rows} rows: {name}", ("rows", str(rows), *path), limit, False, EMBEDDED_SHAPE)


E2E_BARS = tuple(
    _generation_bar(name, rows, path, limit)
    for rows in (1, 4, 16)
    for name, path, limit in (
        ("automatic / plain", ("cases", "auto", "over_plain", "total"), 2.0),
        ("automatic / hf-assisted", ("cases", "auto", "over", "hf-assisted", "total"), 3.0),
        ("automatic / best fixed setting", ("auto_over_best_fixed",), 0.97),
    )
)
E2E_RANDOM_BARS = tuple(
    _generation_bar(
        "automatic / plain, random prompts", rows, ("cases", "auto", "over_plain", "total"), 0.97
    )
    for rows in (1, 4, 16)
)


MODEL_BARS = (
    Bar("plain decoding: share of the bandwidth floor", ("of_floor",), 0.75, False, GPU_SHAPE),
    Bar("plain decoding: transformers / ours", ("transformers_over_ours",), 1.1, False, GPU_SHAPE),
    Bar("review(16) / decode(1)", ("review_over_decode",), 1.10, True, GPU_SHAPE),
    Bar("cascade cycle: share outside the pass", ("outside_pass",), 0.10, True, GPU_SHAPE),
    Bar("tree cycle: share outside the pass", ("outside_pass_tree",), 0.10, True, GPU_SHAPE),
)


def judge(
    bars: Iterable[Bar], report: Mapping[str, Any], shape: str | None, dtype: str
) -> list[dict[str, Any]]:
    """Every bar that holds for this shape and dtype, met or not or not measured."""
    return [bar.judge(report) for bar in bars if shape in bar.shapes and dtype in bar.dtypes]


def show_bars(verdicts: Iterable[Mapping[str, Any]]) -> None:
    words = {True: "pass", False: "FAIL", None: "not measured"}
    for verdict in verdicts:
        value = verdict["value"]
        figure = "-" if value is None else f"{value:.3f}"
        name, bar = verdict["name"], verdict["bar"]
        print(f"{name:76s} {figure:>8s}  {bar:8s} {words[verdict['pass']]}")
