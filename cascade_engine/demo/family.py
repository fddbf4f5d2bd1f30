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


def family(name: str) -> Family:
    """The embedded models called "llama" or "t5". Raises FileNotFoundError where a package lacks
    them."""
    return {"llama": llama_family, "t5": t5_family}[name]()


def t5_family() -> Family:
    """The T5 pair of the package; the table is the LLaMA family's, whose token ids it shares."""
    target, drafts = _existing("t5-target"), (_existing("t5-draft"),)
    return Family(target, drafts, FOLDER / "ngrams.safetensors", ((4, 0), (0, 8)))


def llama_family() -> Family:
    """The LLaMA family of the package. Raises FileNotFoundError where a package lacks it."""
    target = _existing("llama-target")
    # The best of the settings that `python -m cascade_engine.demo.evaluate` compares.
    drafts, table = (FOLDER / "llama-small",), FOLDER / "ngrams.safetensors"
    return Family(target, drafts, table, ((6, 0), (0, 8)))


def _existing(name: str) -> Path:
    folder = FOLDER / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder} holds no model: this package was built without it; give --target DIR"
        )
    return folder
