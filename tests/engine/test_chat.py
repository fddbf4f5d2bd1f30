"""Conversations through the engine: the cache of earlier turns is reused and changes no token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.chat import Message
from cascade_engine.errors import RequestError
from tests.data import data_path

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """stories260k with a chat template of its own."""
    directory = tmp_path / "model"
    shutil.copytree(data_path("stories260k"), directory)
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("chat_format", [None, "plain", "vicuna", "llama-2"])
def test_turns_reuse_the_cache_and_change_nothing(target: Path, chat_format: str | None) -> None:
    reusing = Engine.load(target, policy=FixedCascade([[8]]), max_rows=1)
    fresh = Engine.load(target, policy=FixedCascade([[8]]), max_rows=1, reuse_cache=False)
    params = SamplingParams(max_tokens=24, temperature=0.7, seed=11, ignore_eos=True)
    messages: list[Message] = []
    cached = []
    for turn in ("Tell me a story about a dog.", "What did Lily see in the park?", "And then"):
        messages.append({"role": "user", "content": turn})
        answer = reusing.chat(messages, params, chat_format)[0]
        assert answer.token_ids == fresh.chat(messages, params, chat_format)[0].token_ids
        cached.append(answer.stats.cached_tokens)
        messages.append({"role": "assistant", "content": answer.text})
        reusing.check_integrity()
    assert cached[0] == 0
    assert cached[2] > cached[1] >= 16


def test_a_directory_without_a_template_says_what_to_do() -> None:
    engine = Engine.load(data_path("stories260k"), max_rows=1)
    with pytest.raises(RequestError, match="vicuna"):
        engine.chat([{"role": "user", "content": "Hello"}])
