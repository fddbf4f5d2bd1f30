"""Small JSON files that keep what was measured on a machine, for the next process there."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def cache_file(cache: Path | str | None, kind: str, key: str) -> Path | None:
    """Of what is kept under `key`; "auto" is CASCADE_CACHE, else ~/.cache/cascade_engine; None or
    "none" is nowhere."""
    if cache == "auto":
        cache = os.environ.get("CASCADE_CACHE") or Path.home() / ".cache" / "cascade_engine"
    if cache is None or str(cache) == "none":
        return None
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return Path(cache) / f"{kind}-{name}.json"


def write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing; a directory that cannot be written to is left alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)
        os.replace(name, path)
    except OSError:
        return


def read(path: Path, form: int, key: str) -> dict[str, Any] | None:
    """What was written with this "format" and "key"; None where there is no file. Raises OSError,
    or ValueError for any other file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if not isinstance(content, dict) or content.get("format") != form:
        raise ValueError("it is no such file in this format")
    if content.get("key") != key:
        raise ValueError("it is of other models, devices or versions, or another machine")
    return content
