"""Small machines' worth of work: a tiny model, a short array for the read ceiling, no settling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import measure, op_cases
from bench.shapes import write_shape


@pytest.fixture(autouse=True, scope="package")
def small() -> Iterator[None]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "STREAM_FLOATS", 1 << 16)
        patch.setattr(measure, "SETTLE_SECONDS", 0.0)
        patch.setattr(op_cases, "CACHE_BYTES", 1 << 18)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shape("tiny", "f32", tmp_path_factory.mktemp("tiny"))


def every_number(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a report with the keys that lead to them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from every_number(item, f"{path}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            yield from every_number(item, f"{path}/{i}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def assert_sane(report: Any) -> None:
    """Numbers are finite, and quantiles in order."""
    numbers = dict(every_number(report))
    assert numbers
    assert not [path for path, number in numbers.items() if not math.isfinite(number)]
    for path in numbers:
        if path.endswith("/median"):
            stem = path.removesuffix("/median")
            assert numbers[f"{stem}/p10"] <= numbers[path] <= numbers[f"{stem}/p90"], path
