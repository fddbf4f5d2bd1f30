"""Which questions Skeleton-of-Thought suits (the paper's SoT-R, section 4)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from cascade_engine.errors import CheckpointError, RequestError
from cascade_engine.sot.request_features import KIND_NAMES, features_of

WEIGHTS = Path(__file__).resolve().parent / "router_weights.npz"
FORMAT = 1


class Router(Protocol):
    """Says how well a question suits."""

    threshold: float

    def score(self, question: str) -> float:
        """Probability that it suits, 0..1; from `threshold` on it is answered by points."""


class TrainedRouter:
    """The built-in router: logistic regression over words, pairs and kinds of wording, numpy alone.

    `python -m cascade_engine.sot.train_router` makes the weights; router_card.md describes them.
    Raises CheckpointError for a file that is not such weights.
    """

    def __init__(self, path: str | Path = WEIGHTS) -> None:
        np = _numpy()
        try:
            with np.load(path, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
            header = json.loads(bytes(arrays["header"]))
            terms = bytes(arrays["terms"]).decode("utf-8").split("\n")
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} holds no router weights: {error}") from None
        self._check(path, header, terms, arrays)
        self.threshold = float(header["threshold"])
        self._bias = float(header["bias"])
        # A term's inverse document frequency, and its weight.
        self._terms = {
            term: (float(idf), float(weight))
            for term, idf, weight in zip(terms, arrays["idf"], arrays["weights"], strict=True)
        }
        self._kinds = arrays["kinds"].tolist()

    def score(self, question: str) -> float:
        terms, kinds = features_of(question)
        known = self._terms
        dot = norm = 0.0
        for term, count in terms.items():
            entry = known.get(term)
            if entry is not None:
                value = (1.0 + math.log(count)) * entry[0]
                dot += value * entry[1]
                norm += value * value
        logit = self._bias + sum(self._kinds[kind] for kind in kinds)
        if norm:
            logit += dot / math.sqrt(norm)
        return 1.0 / (1.0 + math.exp(-logit))

    @staticmethod
    def _check(path: str | Path, header: Any, terms: list[str], arrays: dict) -> None:
        wanted = {"idf": len(terms), "weights": len(terms), "kinds": len(KIND_NAMES)}
        for name, length in wanted.items():
            if name not in arrays or arrays[name].shape != (length,):
                raise CheckpointError(f"{path}: {name} must have {length} entries")
        if header.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has router format {header.get('format')!r}, this version reads {FORMAT}"
            )


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise RequestError(
            "the built-in router needs numpy: pip install 'cascade_engine[sot]'"
        ) from None
    return numpy
