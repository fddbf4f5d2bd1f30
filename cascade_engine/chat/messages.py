"""Conversations as lists of messages, checked before any format sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cascade_engine.errors import RequestError

Message = Mapping[str, Any]
"""{"role": ..., "content": ...}; formats from a checkpoint may use further keys."""

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
"""Roles that templates know. A role is part of the markup, so it is never taken from outside."""


def checked(messages: Sequence[Message], roles: Sequence[str] = ROLES) -> list[dict[str, Any]]:
    """Own copies of the messages. Raises RequestError for one without a known role and a text."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(
            f"messages must be a list of {{'role', 'content'}}, got {type(messages).__name__}"
        )
    if not messages:
        raise RequestError("messages must have at least one message, got an empty list")
    return [_checked_one(i, message, roles) for i, message in enumerate(messages)]


def _checked_one(i: int, message: Message, roles: Sequence[str]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(
            f"messages[{i}] must be {{'role', 'content'}}, got {type(message).__name__}"
        )
    role, content = message.get("role"), message.get("content")
    if role not in roles:
        raise RequestError(f"messages[{i}]: role must be one of {', '.join(roles)}, got {role!r}")
    if content is None and message.get("tool_calls"):
        return dict(message)
    if not isinstance(content, str):
        raise RequestError(f"messages[{i}]: content must be a text, got {content!r}")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"messages[{i}]: content must be valid Unicode, got a lone surrogate at character "
            f"{error.start}"
        ) from None
    return dict(message)
