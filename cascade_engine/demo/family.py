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
    # The table drafts so well in this narrow domain that a neural draft costs more than it saves
    # (`python -m cascade_engine.demo.evaluate` compares them).
    return Family(target, (), FOLDER / "ngrams.safetensors", ((10,),))
