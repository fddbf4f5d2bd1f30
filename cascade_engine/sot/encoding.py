"""From a prompt to what an engine is fed. The one place that knows the family of the target.

A decoder-only target has one row: the user's part, then how the answer begins. The encoder of an
encoder-decoder reads the user's part, and how the answer begins is the decoder's prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cascade_engine.chat import ChatFormat
from cascade_engine.chat.encoding import encode_inside
from cascade_engine.engine import Engine
from cascade_engine.errors import RequestError
from cascade_engine.sot.options import Expand
from cascade_engine.sot.prompts import Prompt, PromptSet

_SENTINEL = "begin-of-answer"


class Encoded(NamedTuple):
    """What an engine is fed for a prompt."""

    tokens: list[int]
    decoder_prefix: list[int] | None = None
    """None: the target has no encoder, or the answer begins with nothing."""


class PromptEncoder:
    """Encodes the prompts of one engine in one format. Raises RequestError where target, format and
    prompts do not go together."""

    def __init__(
        self, engine: Engine, prompts: PromptSet, chat_format: ChatFormat | str | None
    ) -> None:
        if engine.tokenizer is None:
            raise RequestError("the target has no tokenizer: Skeleton-of-Thought needs one")
        if prompts.completion and chat_format is not None:
            raise RequestError("these prompts are texts to continue: leave the chat format out")
        if engine.is_encoder_decoder and chat_format is not None:
            raise RequestError("an encoder reads plain text: leave the chat format out")
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._prompts = prompts
        self._completion = prompts.completion
        if isinstance(chat_format, str):
            chat_format = ChatFormat.named(chat_format)
        self._format = chat_format
        self._lead: str | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that the format refuses in what the user says."""
        return () if self._completion or self._format is None else self._format.marks

    def check(self, expand: Expand) -> None:
        """Raises RequestError where this target cannot expand points in this way."""
        places = self._prompts.places_of_points()
        if expand == "fork" and self._engine.is_encoder_decoder and places:
            raise RequestError(
                f"expand 'fork' shares what the encoder made of one input, but by prompts "
                f"{self._prompts.name!r} it reads {{{places[0]}}}, another for every point: use "
                "expand 'ragged' or 'left-padded', or prompts that name the point behind [answer]"
            )

    def encode(self, prompt: Prompt) -> Encoded:
        """Token ids of a prompt. Raises RequestError for a text that the format refuses."""
        if self._engine.is_encoder_decoder:
            prefix = self._tokenizer.encode(prompt.begin, add_bos=False, add_eos=False)
            return Encoded(self._tokenizer.encode(prompt.user), prefix or None)
        if self._completion:
            text = f"{prompt.user}\n{prompt.begin}" if prompt.begin else prompt.user
            return Encoded(self._tokenizer.encode(text, add_eos=False))
        messages = [{"role": "user", "content": prompt.user}]
        ids = self._engine.encode_chat(messages, self._format)
        if not prompt.begin:
            return Encoded(ids)
        if self._lead is None:
            self._lead = self._answer_lead()
        return Encoded(ids + encode_inside(self._tokenizer, self._lead + prompt.begin))

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
