"""One door to all chat formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade_engine.chat.builtin import FORMATS, BuiltinFormat
from cascade_engine.chat.messages import Message
from cascade_engine.chat.sandbox import Limits
from cascade_engine.chat.template import TemplateFormat, load_template
from cascade_engine.errors import RequestError
from cascade_engine.tokenizer import Tokenizer


class ChatFormat:
    """How a list of messages becomes a prompt.

    Built-in formats are `named`; `for_directory` takes a checkpoint's own template. Messages are
    `{"role": "user", "content": "..."}`.

    What `encode` guarantees about the text of messages:

    - It is never run as a template.
    - It never becomes a special token: "</s>" in a message is four characters. The same goes for
      any other token that the template itself writes, except in what the assistant said.
    - In the built-in formats, whose marks of a turn are plain text ("USER:"), system and user
      messages that contain one are refused. A template that marks turns by plain text, instead of
      by tokens of the vocabulary, cannot be protected so: there a message can imitate it.
    - Where it has no such text in it, a template's prompt has exactly the tokens that transformers
      gives for it.

    In the built-in formats the tokens of a conversation are a prefix of those of the same
    conversation continued, and so cached pages are used again. White space around messages is
    dropped there.

    Templates run in a process of their own, under limits on time, output and memory.
    """

    def __init__(self, inner: BuiltinFormat | TemplateFormat) -> None:
        self._inner = inner

    @classmethod
    def named(cls, name: str) -> ChatFormat:
        """A built-in format: "llama-2", "vicuna" or "plain". Raises RequestError."""
        if name not in FORMATS:
            raise RequestError(f"chat format must be one of {', '.join(FORMATS)}, got {name!r}")
        return cls(FORMATS[name])

    @classmethod
    def for_directory(cls, directory: str | Path, choice: str | None = None) -> ChatFormat:
        """The template in a model directory, or the one called `choice` of several.

        Raises RequestError where there is none, TokenizerError for a malformed file.
        """
        return cls(load_template(directory, choice))

    @classmethod
    def from_template(
        cls,
        template: str,
        special_tokens: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> ChatFormat:
        """A template given as text. `special_tokens`: what it knows as bos_token and eos_token."""
        return cls(TemplateFormat("given as text", template, special_tokens or {}, limits))

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that system and user messages must not contain; none for a template."""
        return self._inner.marks if isinstance(self._inner, BuiltinFormat) else ()

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The prompt's token ids, begin token included where the format has one.

        `add_generation_prompt`: end with what makes the model answer. `variables`: further ones
        that the checkpoint's template knows (`tools`, switches).
        Raises RequestError for messages that the format cannot express, and for a template that
        fails.
        """
        if isinstance(self._inner, TemplateFormat):
            return self._inner.encode(messages, tokenizer, add_generation_prompt, variables)
        self._refuse_variables(variables)
        return self._inner.encode(messages, tokenizer, add_generation_prompt)

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text, for people: encoding it could read messages as special tokens.
        Built-in formats write "<s>" and "</s>" for the begin and the end token."""
        if isinstance(self._inner, TemplateFormat):
            return self._inner.render(messages, add_generation_prompt, variables)
        self._refuse_variables(variables)
        return self._inner.render(messages, add_generation_prompt)

    def _refuse_variables(self, variables: Mapping[str, Any] | None) -> None:
        if variables:
            raise RequestError(
                f"format {self.name} has no variables, got {', '.join(map(str, variables))}"
            )
