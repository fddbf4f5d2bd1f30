"""What tests of the borders between drafts and rows share."""

from __future__ import annotations

from cascade_engine import Engine, FixedCascade
from cascade_engine.errors import DecodingError
from tests.data import data_path

TARGET = data_path("stories260k")
PROMPTS = [
    "Once upon a time, there was a little girl named Lily. She loved to play with her dog.",
    "Tom and Sam went to the park. They saw a big dog. The dog was big. The dog",
]
CHAIN = FixedCascade([[6, 3], [0, 8]])
TREE = FixedCascade([[4, 0], [0, 4]], tree=(48, 12), siblings=3)


def run(engine: Engine) -> tuple[dict[str, list[int]], list[DecodingError]]:
    """All tokens by request, and what was raised on the way."""
    tokens: dict[str, list[int]] = {}
    errors: list[DecodingError] = []
    while engine.has_work():
        try:
            outputs = engine.step()
        except DecodingError as error:
            errors.append(error)
            continue
        for out in outputs:
            tokens.setdefault(out.request_id, []).extend(out.token_ids)
        engine.check_integrity()
    return tokens, errors
