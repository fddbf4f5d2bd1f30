"""Conversations to prompts: a checkpoint's own template, or one of the built-in formats."""

from cascade_engine.chat.format import ChatFormat
from cascade_engine.chat.messages import Message
from cascade_engine.chat.sandbox import Limits

__all__ = ["ChatFormat", "Limits", "Message"]
