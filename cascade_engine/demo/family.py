"""The embedded models: where they are, and a cascade setting that suits them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
EXAMPLE_QUESTION = "How can I save water at home?"


@dataclass(frozen=True)
class Family:
    """A target with its drafts, large to small."""

    target: Path
    drafts: tuple[Path, ...]
    table: Path | None
    k_matrix: tuple[tuple[int, ...], ...]
    """For `drafts` and the statistical level."""


def llama_family() -> Family:
    """The LLaMA family of the package. Raises FileNotFoundError where a package lacks it."""
    target = FOLDER / "llama-target"
    if not (target / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{target} holds no model: this package was built without the embedded models; give "
            "--target DIR"
        )
    # The best of the settings that `python -m cascade_engine.demo.evaluate` compares.
    drafts, table = (FOLDER / "llama-small",), FOLDER / "ngrams.safetensors"
    return Family(target, drafts, table, ((6, 0), (0, 8)))
