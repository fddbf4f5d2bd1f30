"""Trained models as Hugging Face directories."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch


def save_as(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json and model.safetensors in `dtype`; the model stays as it is."""
    stored = copy.deepcopy(model).to(dtype)
    stored.config.dtype = dtype
    stored.save_pretrained(folder)
    if model.config.model_type == "llama":
        _add_rope_theta(folder / "config.json")


def _add_rope_theta(path: Path) -> None:
    """Readers written before transformers 5 look for `rope_theta` at the top level."""
    config = json.loads(path.read_text())
    config.setdefault("rope_theta", config.get("rope_parameters", {}).get("rope_theta", 10000.0))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
