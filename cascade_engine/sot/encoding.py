"""From a prompt to what an engine is fed. The one place that knows the family of the target.

A decoder-only target has one row: the user's part, then how the answer begins.
"""

from __future__ import annotations

from collections.abc import Mapping

from cascade_engine.chat import ChatFormat
from cascade_engine.chat.encoding import encode_inside
from cascade_engine.engine import Engine
from cascade_engine.errors import RequestError
from cascade_engine.sot.options import Expand
from cascade_engine.sot.prompts import Prompt

_SENTINEL = "begin-of-answer"


class PromptEncoder:
    """Encodes the prompts of one engine in one format."""

    def __init__(
        self, engine: Engine, completion: bool, chat_format: ChatFormat | str | None
    ) -> None:
        if engine.tokenizer is None:
            raise RequestError("the target has no tokenizer: Skeleton-of-Thought needs one")
        if completion and chat_format is not None:
            raise RequestError("these prompts are texts to continue: leave the chat format out")
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._completion = completion
        if isinstance(chat_format, str):
            chat_format = ChatFormat.named(chat_format)
        self._format = chat_format
        self._lead: str | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that the format refuses in what the user says."""
        return () if self._completion or self._format is None else self._format.marks

    def check(self, expand: Expand) -> None:
        """Whether this target can expand points in this way; every decoder-only one can."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Raises RequestError for a text that the format refuses."""
        if self._completion:
            text = f"{prompt.user}\n{prompt.begin}" if prompt.begin else prompt.user
            return self._tokenizer.encode(text, add_eos=False)
        messages = [{"role": "user", "content": prompt.user}]
        ids = self._engine.encode_chat(messages, self._format)
        if not prompt.begin:
            return ids
        if self._lead is None:
            self._lead = self._answer_lead()
        return ids + encode_inside(self._tokenizer, self._lead + prompt.begin)

    def _answer_lead(self) -> str:
        """What the format writes between the cue to answer and the answer: a blank, or nothing."""
        chat = self._format or self._engine.chat_format
        question: Mapping[str, str] = {"role": "user", "content": "?"}
        answer = {"role": "assistant", "content": _SENTINEL}
        asked = chat.render([question])
        try:
            answered = chat.render([question, answer], add_generation_prompt=False)
        except RequestError:
            return ""
        lead, found, _ = answered.removeprefix(asked).partition(_SENTINEL)
        return lead if found and answered.startswith(asked) else ""
