"""A checkpoint's own chat template, with the messages' text kept apart from its markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cascade_engine.chat.markup import PRIVATE, Call, Disguise, Markup
from cascade_engine.chat.messages import Message, checked
from cascade_engine.chat.sandbox import Limits, Sandbox
from cascade_engine.errors import RequestError, TokenizerError
from cascade_engine.tokenizer import Tokenizer
from cascade_engine.tokenizer_files import TokenizerFiles

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
DEFAULT = "default"


class TemplateFormat:
    """Renders conversations through a template; see `ChatFormat` for what `encode` guarantees."""

    def __init__(
        self,
        name: str,
        template: str,
        special_tokens: Mapping[str, str],
        limits: Limits | None = None,
    ) -> None:
        self.name = name
        self._template = template
        self._special_tokens = dict(special_tokens)
        self._sandbox = Sandbox(name, template, limits)
        self._markup: tuple[Tokenizer, Markup] | None = None

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text, as transformers' apply_chat_template gives it."""
        call = Call(checked(messages), add_generation_prompt, dict(variables or {}))
        text = self._run(call)
        self._check_system_is_used(call, text)
        return text

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        call = Call(checked(messages), add_generation_prompt, dict(variables or {}))
        markup = self._markup_of(tokenizer)
        disguise = Disguise.of(markup, call)
        shown = call.with_texts(disguise.occurrences)
        text = self._run(shown)
        self._check_system_is_used(shown, text)
        if disguise.is_needed():
            # With every character gone that could begin a special token, those that are left come
            # from the template. Seeing the text as it is must not have added any.
            alone = self._run(call.with_texts(disguise.everything))
            if markup.found(alone) != markup.found(text):
                raise RequestError(
                    f"chat template {self.name} writes other special tokens depending on the "
                    "messages' text, so that their text cannot be told from its own: leave out "
                    f"{markup.shown()} in messages"
                )
        return markup.encode(tokenizer, text, disguise)

    def _markup_of(self, tokenizer: Tokenizer) -> Markup:
        if self._markup is None or self._markup[0] is not tokenizer:
            named = self._special_tokens.values()
            self._markup = tokenizer, Markup.of(tokenizer, self._template, named)
        return self._markup[1]

    def _run(self, call: Call) -> str:
        # transformers defines these two even where there are none.
        values = {"tools": None, "documents": None, **self._special_tokens, **call.variables}
        values["messages"] = call.messages
        values["add_generation_prompt"] = call.add_generation_prompt
        return self._sandbox.render(values)

    def _check_system_is_used(self, call: Call, text: str) -> None:
        """A template may pass over a system message without a word; the engine does not."""
        for i, message in enumerate(call.messages):
            if message["role"] != "system" or not message["content"].strip():
                continue
            changed = [dict(other) for other in call.messages]
            changed[i]["content"] = "".join(map(chr, PRIVATE[:3]))
            other = Call(changed, call.add_generation_prompt, call.variables)
            if self._run(other) == text:
                raise RequestError(
                    f"chat template {self.name} leaves out messages[{i}]: it has no place for this "
                    "system message; put the text into the first user message"
                )


def load_template(directory: str | Path, choice: str | None = None) -> TemplateFormat:
    """The template in a model directory, or its template called `choice`."""
    root = Path(directory)
    files = TokenizerFiles.read(root)
    templates = _templates(root, files)
    if not templates:
        raise RequestError(
            f"{root} has no chat template ({TEMPLATE_FILE}, or chat_template in "
            "tokenizer_config.json): choose a format, one of llama-2, vicuna, plain"
        )
    wanted = choice or (DEFAULT if len(templates) > 1 else next(iter(templates)))
    if wanted not in templates:
        raise RequestError(
            f"{root} has no chat template {wanted!r}: choose one of {', '.join(sorted(templates))}"
        )
    name = root.resolve().name if wanted == DEFAULT else f"{root.resolve().name}:{wanted}"
    return TemplateFormat(name, templates[wanted], _special_tokens(root, files))


def _templates(root: Path, files: TokenizerFiles) -> dict[str, str]:
    """Templates by name; files of their own come before what tokenizer_config.json has."""
    where = root / "tokenizer_config.json"
    value = files.config.get("chat_template")
    entries = value if isinstance(value, list) else [{"name": DEFAULT, "template": value}]
    templates = {}
    for entry in entries if value is not None else []:
        fields = entry if isinstance(entry, dict) else {}
        name, template = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            raise TokenizerError(
                f"{where}: chat_template must be a text, or a list of {{'name', 'template'}} texts"
            )
        templates[name] = template
    paths = [(DEFAULT, root / TEMPLATE_FILE)]
    paths += [(path.stem, path) for path in sorted((root / TEMPLATE_FOLDER).glob("*.jinja"))]
    for name, path in paths:
        if path.is_file():
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"{path} cannot be read: {error}") from None
    return templates


def _special_tokens(root: Path, files: TokenizerFiles) -> dict[str, str]:
    """The texts that a template knows as bos_token, eos_token and so on."""
    keys = {key for values in (files.config, files.special_tokens) for key in values}
    named = {key: files.named_piece(key) for key in keys if key.endswith("_token")}
    tokens = {key: piece for key, piece in named.items() if piece is not None}
    if {"bos_token", "eos_token"} <= tokens.keys():
        return tokens
    tokenizer = Tokenizer.load(root)
    if tokenizer is not None:
        pieces = tokenizer.pieces()
        ids = {"bos_token": tokenizer.bos_id, "eos_token": next(iter(tokenizer.eos_ids), None)}
        for key, number in ids.items():
            if number is not None:
                tokens.setdefault(key, pieces[number])
    return tokens
