"""Settings as files: what `python -m cascade_engine.tune` writes and `Engine.load(policy=FILE)`
reads.

A JSON object: `format` and `version`; `levels`, the names of the models that the setting is for
(target first, large to small); `k_matrix`, `lenience`, `tree`, `siblings` and `min_confidence` as
FixedCascade takes them (a file without the last one has 0); `source`, where it came from, which
nothing depends on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from cascade_engine.errors import RequestError
from cascade_engine.policy.fixed import FixedCascade

FORMAT = "cascade_engine policy"
VERSION = 1
KEYS = ("format", "version", "levels", "k_matrix", "lenience", "tree", "siblings", "source")


def write_policy(
    path: str | PathLike[str],
    policy: FixedCascade,
    levels: Sequence[str],
    source: Mapping[str, Any],
) -> None:
    """`levels`: names of the target and its drafts."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "levels": list(levels),
        "k_matrix": policy.k_matrix,
        "lenience": policy.lenience,
        "tree": policy.tree,
        "siblings": policy.siblings,
        "min_confidence": policy.min_confidence,
        "source": dict(source),
    }
    Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_policy(path: str | PathLike[str], levels: Sequence[str]) -> FixedCascade:
    """The setting in a file, for models of these names. Raises RequestError for a file that is not
    there or no policy, one of another version, and one for other models."""
    content = _object(Path(path))
    for key in KEYS:
        if key not in content:
            raise RequestError(f"policy file {path} lacks {key!r}")
    if unknown := [key for key in content if key not in (*KEYS, "min_confidence")]:
        raise RequestError(f"policy file {path} has an unknown key {unknown[0]!r}")
    if content["version"] != VERSION:
        raise RequestError(
            f"policy file {path} has version {content['version']!r}; version {VERSION} is read: "
            "tune again"
        )
    if content["levels"] != list(levels):
        raise RequestError(
            f"policy file {path} is for the models {content['levels']!r}, loaded are "
            f"{list(levels)!r}: load those, or tune for these"
        )
    try:
        return FixedCascade(
            content["k_matrix"],
            content["lenience"],
            content["tree"],
            content["siblings"],
            content.get("min_confidence", 0.0),
        )
    except (RequestError, TypeError) as error:
        raise RequestError(f"policy file {path}: {error}") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"policy must be 'auto', 'fixed', 'plain', a policy or a policy file, got {str(path)!r}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"policy file {path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RequestError(f"{path} is no policy file: its 'format' must be {FORMAT!r}")
    return content
