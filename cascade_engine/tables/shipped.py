"""Tables that ship with the package, one for each of a few common tokenizers."""

from __future__ import annotations

from pathlib import Path

from cascade_engine.tables.files import HasFingerprint, read_info

FOLDER = Path(__file__).parent / "prebuilt"


def prebuilt_for(tokenizer: HasFingerprint | None) -> Path | None:
    """The shipped table whose tokenizer numbers the same pieces alike; None where there is none.

    The fingerprint of the whole vocabulary decides (`Tokenizer.fingerprint`), not a name.
    """
    if tokenizer is None:
        return None
    fingerprint = tokenizer.fingerprint()
    for path in sorted(FOLDER.glob("*.safetensors")):
        if read_info(path).fingerprint == fingerprint:
            return path
    return None
