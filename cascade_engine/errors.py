"""The errors a user can meet. Messages are one line: the value, the limit and the way out."""

from __future__ import annotations


class CascadeError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(CascadeError):
    """A model's configuration is malformed, or asks for what this engine does not support."""


class CheckpointError(CascadeError):
    """A weight file is damaged, or does not hold what its configuration implies."""


class TokenizerError(CascadeError):
    """A tokenizer cannot be loaded, or was asked about a token it does not have."""


class VocabularyMismatch(TokenizerError):
    """Two models that must share a vocabulary number their tokens differently."""


class RequestError(CascadeError, ValueError):
    """A parameter of a request or of the engine has a value that is not allowed."""


class DecodingError(CascadeError):
    """A pass failed: the model's output is not a number, or a request's allowed_tokens raised. The
    requests in `request_ids` were dropped; the others go on with the next step."""

    def __init__(self, message: str, request_ids: list[str]) -> None:
        super().__init__(message)
        self.request_ids = request_ids

    def __reduce__(self) -> tuple[type[DecodingError], tuple[str, list[str]]]:
        return DecodingError, (str(self), self.request_ids)


class CapacityError(CascadeError):
    """A prompt, a cache or a model does not fit the context or the memory there is."""


class TraceError(CascadeError):
    """A trace is damaged or of another version, or could not be written to its end."""
