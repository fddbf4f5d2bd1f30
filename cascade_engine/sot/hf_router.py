"""A Hugging Face sequence-classification model as router (the paper uses RoBERTa)."""

from __future__ import annotations

from pathlib import Path

from cascade_engine.errors import CheckpointError, RequestError

MAX_TOKENS = 512


class HfRouter:
    """Label 1 of a two-label model in a directory is "it suits". Needs transformers.

    Raises CheckpointError for a directory without such a model.
    """

    def __init__(self, directory: str | Path, threshold: float = 0.5) -> None:
        import torch

        try:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer
        except ImportError:
            raise RequestError(
                "such a router needs transformers: pip install 'cascade_engine[train]'"
            ) from None
        if not 0.0 <= threshold <= 1.0:
            raise RequestError(f"threshold must be in 0..1, got {threshold!r}")
        self.threshold = threshold
        self._torch = torch
        if not Path(directory).is_dir():
            raise CheckpointError(f"{directory} is not a directory")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            self._model = AutoModelForSequenceClassification.from_pretrained(
                directory, local_files_only=True
            ).eval()
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{directory}: {error}") from None
        labels = self._model.config.num_labels
        if labels != 2:
            raise CheckpointError(f"{directory} has {labels} labels, a router has 2")
        positions = getattr(self._model.config, "max_position_embeddings", MAX_TOKENS + 2)
        # RoBERTa numbers its positions from 2 on.
        self._max_tokens = min(MAX_TOKENS, positions - 2)

    def score(self, question: str) -> float:
        with self._torch.inference_mode():
            inputs = self._tokenizer(
                question, truncation=True, max_length=self._max_tokens, return_tensors="pt"
            )
            logits = self._model(**inputs).logits[0].float()
            return float(self._torch.softmax(logits, -1)[1])
