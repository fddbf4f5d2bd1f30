"""Tokenizers and templates for the tests beside this file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path

SPECIALS = [
    "<|begin|>",
    "<|end|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
# Pieces that are tokens of their own without being special, as reasoning marks often are.
ADDED = ["<think>", "</think>"]
# Lines end words, so that what follows a line does not change its tokens.
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = """\
{%- for message in messages %}
    {%- if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- set loop_messages = messages %}
{%- for message in loop_messages %}
{%- set head = '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' %}
{{- head ~ message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

INSTRUCT = """\
{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate') }}
{% endif %}
{% if loop.index0 == 0 and system_message %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ ' ' + content.strip() + ' ' + eos_token }}
{% endif %}
{% endfor %}
"""

COLONS = """\
{{ bos_token }}{% for message in messages %}
{%- if message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'user' %} USER: {{ message.content | trim }}
{%- else %} ASSISTANT: {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
{%- endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}
"""

# Earlier answers are shown without their reasoning, which depends on what a message contains.
REASONING = """\
{%- set last = namespace(index=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' and not message.content.startswith('<result>') %}
        {%- set last.index = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</think>' in content and loop.index0 < last.index %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
    {%- if tools and loop.first %}{{- tools | tojson }}{% continue %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "colons": COLONS,
    "reasoning": REASONING,
}


def say(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation: user and assistant in turns, after a system message if given."""
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def byte_level(directory: Path) -> Path:
    """A byte-level tokenizer.json of 1,000 pieces with special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    corpus = data_path("corpus", "wiki.txt").read_text(encoding="utf-8")[:60_000]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORDS), "isolated")
    spelled = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([words, spelled])
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([corpus], trainer)
    backend.add_tokens(ADDED)
    backend.save(str(directory / "tokenizer.json"))
    settings(directory)
    return directory


def settings(directory: Path, **more: object) -> None:
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|end|>",
        **more,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(values))


def sentencepiece(directory: Path) -> Path:
    """LLaMA's tokenizer.model."""
    shutil.copy(data_path("tokenizers", "llama", "tokenizer.model"), directory)
    return directory


def loaded(directory: Path) -> Tokenizer:
    tokenizer = Tokenizer.load(directory)
    assert tokenizer is not None
    return tokenizer
