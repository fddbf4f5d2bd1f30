"""JSON files of a model directory: read whole, and every value checked for type and range."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cascade_engine.errors import ConfigError

MAX_INT = 2**31 - 1
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when there is no such file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


class Reader:
    """Typed and range-checked access to the values of one JSON object; null counts as absent."""

    def __init__(self, values: Mapping[str, Any], where: Path, prefix: str = "") -> None:
        self.values = values
        self.where = where
        self.prefix = prefix

    def error(self, key: str, must: str) -> ConfigError:
        got = repr(self.values.get(key)) if key in self.values else "nothing"
        return ConfigError(f"{self.where}: {self.prefix}{key} must be {must}, got {got}")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not int or not low <= value <= MAX_INT:
            raise self.error(key, f"an integer in [{low}, {MAX_INT}]")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30:
            return float(value)
        raise self.error(key, "a finite number > 0")

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not bool:
            raise self.error(key, "true or false")
        return value

    def section(self, key: str) -> Reader | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "an object")
        return Reader(value, self.where, f"{self.prefix}{key}.")


def parse_dtype(reader: Reader) -> torch.dtype | None:
    """The dtype that a config.json declares, under either name; None where it does not."""
    key = "dtype" if reader.values.get("dtype") is not None else "torch_dtype"
    name = reader.values.get(key)
    if name is None:
        return None
    if not isinstance(name, str) or name not in DTYPES:
        raise reader.error(key, " or ".join(DTYPES))
    return DTYPES[name]
