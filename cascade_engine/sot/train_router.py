"""Trains the built-in router: `python -m cascade_engine.sot.train_router --data DIR [--out FILE]`.

DIR holds lima_router.csv (label;request), and vicuna_router.csv and wizardlm_router.csv, which are
looked at only to report. The router is the mean of four logistic regressions; its threshold comes
from cross-validation on LIMA. Needs scikit-learn (`pip install 'cascade_engine[router]'`).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cascade_engine.sot.request_features import KIND_NAMES, Features, features_of
from cascade_engine.sot.router import FORMAT, WEIGHTS, Router, TrainedRouter

MIN_DOCUMENTS = 2
SETTINGS = ((1.0, 0.05), (3.0, 0.05), (1.0, 0.1), (3.0, 0.1))
"""(C, scale of the kinds) of the regressions. In cross-validation all four are equally good."""
FOLDS, REPEATS = 5, 3


@dataclass(frozen=True)
class Labelled:
    """Requests, and whether Skeleton-of-Thought suits each (1) or not (0)."""

    requests: list[str]
    labels: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Labelled:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        return cls([row["request"] for row in rows], np.array([int(row["label"]) for row in rows]))


class Featurizer:
    """Terms of at least two documents with their inverse document frequencies; kinds as 0 and 1,
    with the scale that brings them to unit variance."""

    def __init__(self, documents: Sequence[Features]) -> None:
        counts = Counter(term for doc in documents for term in doc.terms)
        self.terms = sorted(t for t, n in counts.items() if n >= MIN_DOCUMENTS and "\n" not in t)
        self.index = {term: i for i, term in enumerate(self.terms)}
        total = len(documents)
        self.idf = np.array([math.log((1 + total) / (1 + counts[t])) + 1 for t in self.terms])
        rates = np.zeros(len(KIND_NAMES))
        for doc in documents:
            rates[doc.kinds] += 1 / total
        self.kind_scale = 1.0 / np.maximum(np.sqrt(rates * (1 - rates)), 0.05)

    def matrix(self, documents: Sequence[Features]) -> Any:
        from scipy.sparse import csr_matrix

        rows, columns, values = [], [], []
        for i, doc in enumerate(documents):
            known = [(self.index[t], n) for t, n in doc.terms.items() if t in self.index]
            vector = np.array([(1 + math.log(n)) * self.idf[j] for j, n in known])
            norm = np.linalg.norm(vector) if len(known) else 1.0
            rows += [i] * (len(known) + len(doc.kinds))
            columns += [j for j, _ in known] + [len(self.terms) + k for k in doc.kinds]
            values += [*(vector / norm), *([1.0] * len(doc.kinds))]
        shape = (len(documents), len(self.terms) + len(KIND_NAMES))
        return csr_matrix((values, (rows, columns)), shape=shape)


@dataclass(frozen=True)
class Linear:
    """Logits of documents: terms and kinds times their weights."""

    featurizer: Featurizer
    terms: np.ndarray
    kinds: np.ndarray
    bias: float

    def probabilities(self, documents: Sequence[Features]) -> np.ndarray:
        matrix = self.featurizer.matrix(documents)
        logits = matrix @ np.concatenate([self.terms, self.kinds]) + self.bias
        return 1.0 / (1.0 + np.exp(-logits))


def fit(documents: Sequence[Features], labels: np.ndarray) -> Linear:
    """The mean of the regressions of `SETTINGS`, which is again linear."""
    from sklearn.linear_model import LogisticRegression

    featurizer = Featurizer(documents)
    matrix = featurizer.matrix(documents)
    count = len(featurizer.terms)
    terms, kinds, bias = np.zeros(count), np.zeros(len(KIND_NAMES)), 0.0
    for penalty, scale in SETTINGS:
        scales = np.ones(matrix.shape[1])
        scales[count:] = scale * featurizer.kind_scale
        model = LogisticRegression(C=penalty, max_iter=3000).fit(matrix.multiply(scales), labels)
        weights = model.coef_[0] * scales / len(SETTINGS)
        terms, kinds = terms + weights[:count], kinds + weights[count:]
        bias += float(model.intercept_[0]) / len(SETTINGS)
    return Linear(featurizer, terms, kinds, bias)


def cross_validated(documents: Sequence[Features], labels: np.ndarray) -> np.ndarray:
    """Held-out probabilities, float64 `[REPEATS, documents]`."""
    from sklearn.model_selection import StratifiedKFold

    probabilities = np.zeros((REPEATS, len(documents)))
    for repeat in range(REPEATS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
        for train, held_out in folds.split(labels, labels):
            model = fit([documents[i] for i in train], labels[train])
            probabilities[repeat, held_out] = model.probabilities([documents[i] for i in held_out])
    return probabilities


def best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The threshold of the best accuracy, averaged over its neighbourhood of +-0.08: single
    thresholds differ by chance."""
    grid = np.linspace(0.1, 0.9, 161)
    accuracy = np.array([((probabilities >= t) == labels).mean() for t in grid])
    smooth = np.convolve(accuracy, np.ones(33) / 33, "same")
    smooth[:16] = smooth[-16:] = 0
    return float(grid[int(np.argmax(smooth))])


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that a suitable request scores above another one; ties count half."""
    yes, no = scores[labels == 1], scores[labels == 0]
    above = (yes[:, None] > no[None, :]).mean()
    return float(above + 0.5 * (yes[:, None] == no[None, :]).mean())


def train(data: Labelled) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a weights file, and what cross-validation found."""
    documents = [features_of(request) for request in data.requests]
    held_out = cross_validated(documents, data.labels)
    threshold = best_threshold(held_out, data.labels)
    model = fit(documents, data.labels)
    header = {"format": FORMAT, "threshold": threshold, "bias": model.bias}
    report = {
        "threshold": threshold,
        "cv_auc": float(np.mean([auc(p, data.labels) for p in held_out])),
        "cv_accuracy": float(((held_out >= threshold) == data.labels).mean()),
        "majority": majority(data.labels),
        "requests": len(documents),
        "terms": len(model.terms),
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
        "terms": np.frombuffer("\n".join(model.featurizer.terms).encode(), np.uint8),
        "idf": model.featurizer.idf.astype(np.float32),
        "weights": model.terms.astype(np.float32),
        "kinds": model.kinds.astype(np.float32),
    }
    return arrays, report


def majority(labels: np.ndarray) -> float:
    return float(max(labels.mean(), 1 - labels.mean()))


def evaluate(router: Router, data: Labelled) -> dict[str, float]:
    """Accuracy at the router's threshold, AUC, the majority class's share, seconds a question."""
    begin = time.perf_counter()
    scores = np.array([router.score(request) for request in data.requests])
    seconds = (time.perf_counter() - begin) / len(scores)
    return {
        "questions": len(scores),
        "accuracy": float(((scores >= router.threshold) == data.labels).mean()),
        "auc": auc(scores, data.labels),
        "majority": majority(data.labels),
        "milliseconds": seconds * 1e3,
    }


def write_weights(path: Path, arrays: dict[str, Any]) -> None:
    """Compressed, and the same bytes for the same arrays."""
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=WEIGHTS, metavar="FILE")
    args = parser.parse_args()
    arrays, report = train(Labelled.read(args.data / "lima_router.csv"))
    write_weights(args.out, arrays)
    print(json.dumps({"lima": report, "bytes": args.out.stat().st_size}, indent=2))
    router = TrainedRouter(args.out)
    for name in ("vicuna", "wizardlm"):
        path = args.data / f"{name}_router.csv"
        if path.is_file():
            print(json.dumps({name: evaluate(router, Labelled.read(path))}, indent=2))


if __name__ == "__main__":
    main()
