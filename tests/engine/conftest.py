"""Engines that several files of tests decode with."""

from __future__ import annotations

import pytest

from cascade_engine import Engine, PlainDecoding
from tests.data import data_path
from tests.engine.borders import TARGET


@pytest.fixture(scope="module")
def plain() -> Engine:
    return Engine.load(TARGET, policy=PlainDecoding(), reuse_cache=False, threads=1)


@pytest.fixture(scope="module")
def cascade() -> Engine:
    return Engine.load(TARGET, [data_path("llama2xs")], threads=1, max_rows=4)
