"""Tables that ship with the package, one for each of a few common tokenizers."""

from __future__ import annotations

from pathlib import Path

from cascade_engine.tables.files import HasFingerprint, read_info

FOLDER = Path(__file__).parent / "prebuilt"


def prebuilt_for(tokenizer: HasFingerprint | None, vocab_size: int | None = None) -> Path | None:
    """The shipped table whose tokenizer numbers the same pieces alike; None where there is none, or
    where models of `vocab_size` tokens know fewer than it.

    The fingerprint of the whole vocabulary decides (`Tokenizer.fingerprint`), not a name.
    """
    if tokenizer is None:
        return None
    fingerprint = tokenizer.fingerprint()
    for path in sorted(FOLDER.glob("*.safetensors")):
        info = read_info(path)
        if info.fingerprint == fingerprint:
            return path if vocab_size is None or info.vocab_size <= vocab_size else None
    return None
