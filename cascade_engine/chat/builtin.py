"""Built-in formats, for checkpoints that bring no template.

Every part of a conversation is encoded by itself, so the tokens of a conversation are a prefix of
those of the same conversation continued, whatever the vocabulary merges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cascade_engine.chat.encoding import encode_inside
from cascade_engine.chat.messages import Message, checked
from cascade_engine.errors import RequestError
from cascade_engine.tokenizer import Tokenizer

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)


class Part(NamedTuple):
    """A piece of a prompt.

    "bos", "eos": the special token; "first": a text that begins the prompt or follows a special
    token; "inside": a text that goes on where the one before ended.
    """

    kind: Literal["bos", "eos", "first", "inside"]
    text: str


BOS, EOS = Part("bos", "<s>"), Part("eos", "</s>")


class Turn(NamedTuple):
    """A question and, but for the last turn, its answer. No white space around either."""

    user: str
    assistant: str | None


@dataclass(frozen=True)
class BuiltinFormat:
    """How a conversation is written.

    - question(system, user, first): what stands before the model's answer, in a conversation's
      first turn (the only one with a system message) or a later one
    - cue: its end, which only makes the model answer
    - before_answer, after_answer: what surrounds an answer
    - marks: texts that begin a turn. They are plain text to the model, so a message that contains
      one could speak for somebody else: it is refused.
    """

    name: str
    default_system: str | None
    first_question: str
    """With {system} and {user}."""
    first_question_alone: str
    """Where there is no system message."""
    later_question: str
    cue: str
    answer: str
    bos_each_turn: bool
    marks: tuple[str, ...]

    def parts(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[Part]:
        """The conversation in pieces. Raises RequestError as `ChatFormat.encode`."""
        system, turns = self._turns(messages, add_generation_prompt)
        parts = []
        for i, turn in enumerate(turns):
            if i == 0 or self.bos_each_turn:
                parts.append(BOS)
            parts.append(Part("first", self._question(system, turn.user, i == 0)))
            if turn.assistant is not None or add_generation_prompt:
                parts.append(Part("inside", self.cue))
            if turn.assistant is not None:
                parts += [Part("inside", self.answer.format(turn.assistant)), EOS]
        return [part for part in parts if part.text]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return "".join(part.text for part in self.parts(messages, add_generation_prompt))

    def encode(
        self, messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool
    ) -> list[int]:
        ids: list[int] = []
        for kind, text in self.parts(messages, add_generation_prompt):
            if kind == "bos":
                ids += [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            elif kind == "eos":
                if not tokenizer.eos_ids:
                    raise RequestError(
                        f"format {self.name} ends an answer with the end token, and this tokenizer "
                        "has none: use the checkpoint's own template"
                    )
                ids.append(tokenizer.eos_ids[0])
            elif kind == "first":
                ids += tokenizer.encode(text, add_bos=False, add_eos=False)
            else:
                ids += encode_inside(tokenizer, text)
        return ids

    def _question(self, system: str | None, user: str, first: bool) -> str:
        if not first:
            return self.later_question.format(user=user)
        if system is None:
            return self.first_question_alone.format(user=user)
        return self.first_question.format(system=system, user=user)

    def _turns(
        self, messages: Sequence[Message], add_generation_prompt: bool
    ) -> tuple[str | None, list[Turn]]:
        own = checked(messages, ("system", "user", "assistant"))
        for i, message in enumerate(own):
            if extra := message.keys() - {"role", "content"}:
                names = ", ".join(sorted(map(str, extra)))
                raise RequestError(f"messages[{i}]: format {self.name} has no use for {names}")
            self._refuse_marks(i, message["role"], message["content"])
        system = self.default_system
        begin = 1 if own[0]["role"] == "system" else 0
        if begin:
            system = own[0]["content"].strip()
        texts = [message["content"].strip() for message in own[begin:]]
        for i, message in enumerate(own[begin:]):
            self._check_role(begin + i, message["role"], ("user", "assistant")[i % 2])
        if not texts:
            raise RequestError(
                f"format {self.name} needs a user message, got a system message alone"
            )
        if add_generation_prompt and len(texts) % 2 == 0:
            raise RequestError(
                "the last message is from the assistant, so there is nothing to answer: add a user "
                "message, or set add_generation_prompt=False"
            )
        answers = [*texts[1::2], None]
        return system, [Turn(*turn) for turn in zip(texts[::2], answers, strict=False)]

    def _check_role(self, i: int, role: str, expected: str) -> None:
        if role == "system":
            raise RequestError(
                f"messages[{i}]: format {self.name} has one system message, at the beginning; "
                "join them"
            )
        if role != expected:
            raise RequestError(
                f"messages[{i}] must be from the {expected}, as user and assistant take turns in "
                f"format {self.name}, got {role!r}"
            )

    def _refuse_marks(self, i: int, role: str, content: str) -> None:
        mark = next((mark for mark in self.marks if mark in content), None)
        if mark is not None and role != "assistant":
            raise RequestError(
                f"messages[{i}] contains {mark!r}, which is how format {self.name} tells who "
                "speaks: write it otherwise"
            )


LLAMA_2 = BuiltinFormat(
    name="llama-2",
    default_system=None,
    first_question="[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{user} [/INST]",
    first_question_alone="[INST] {user} [/INST]",
    later_question="[INST] {user} [/INST]",
    cue="",
    answer=" {} ",
    bos_each_turn=True,
    marks=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
)
"""LLaMA-2 chat (Touvron et al., arXiv 2307.09288)."""

VICUNA = BuiltinFormat(
    name="vicuna",
    default_system=VICUNA_SYSTEM,
    first_question="{system} USER: {user}",
    first_question_alone="USER: {user}",
    later_question="USER: {user}",
    cue=" ASSISTANT:",
    answer=" {}",
    bos_each_turn=False,
    marks=("USER:", "ASSISTANT:"),
)
"""Vicuna 1.1 and later."""

PLAIN = BuiltinFormat(
    name="plain",
    default_system=None,
    first_question="{system}\n\nQuestion: {user}",
    first_question_alone="Question: {user}",
    later_question="Question: {user}",
    cue="\nAnswer:",
    answer=" {}",
    bos_each_turn=False,
    marks=("Question:", "Answer:"),
)
"""For models without a chat format: questions and answers as plain text."""

FORMATS = {format.name: format for format in (LLAMA_2, VICUNA, PLAIN)}
