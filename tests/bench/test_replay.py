"""bench.replay: drafters by hand, counting by hand, and the published rule on real answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.drafters import PromptLookup, Statistical, make_drafter, prompt_lookup
from bench.replay import Turn, agreeing, main, read_turns, replay
from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path


def test_prompt_lookup_copies_after_the_first_of_the_longest_matches() -> None:
    text = [1, 2, 3, 7, 2, 3, 8, 1, 2, 3]
    assert prompt_lookup(text, 3, 3) == [7, 2, 3]
    assert prompt_lookup(text, 1, 10) == [7, 2, 3, 8, 1, 2, 3]
    assert prompt_lookup([9, 2, 3, 4, 5, 2, 3], 3, 2) == [4, 5]
    assert prompt_lookup([5, 5, 5], 3, 4) == [5]
    assert prompt_lookup([1, 2, 3], 3, 4) == prompt_lookup([1], 3, 4) == []


def test_agreeing_nodes() -> None:
    tokens, parents = [5, 6, 7, 6, 8], [-1, 0, 1, -1, 3]
    assert agreeing(tokens, parents, [5, 6, 7, 1]) == 3
    assert agreeing(tokens, parents, [6, 8]) == 2
    assert agreeing(tokens, parents, [6, 7]) == 1
    assert agreeing(tokens, parents, [7]) == agreeing(tokens, parents, []) == 0


def test_counts_by_hand() -> None:
    # Calls: [] takes 4; [1, 2, 3, 4] after "4"? none, takes 1; "1" drafts 2 3 4 1, of which 2 3
    # agree, and 9 is taken; [] for 9 takes 2, the end.
    turn = Turn("copy", [1, 2, 3], [4, 1, 2, 3, 9, 2])
    tally = replay([turn, Turn("other", [7], [8])], PromptLookup())
    report = tally.report()
    assert (tally.tokens, tally.calls) == (7, 5)
    assert report["by_category"] == {"copy": 6 / 4, "other": 1.0}
    assert report["drafted_per_call"] == 4 / 5


def test_the_end_token_is_not_drafted_for() -> None:
    # All of 2 3 would agree, but the last token always costs its own target's say.
    tally = replay([Turn("x", [1, 2, 3, 1], [2, 3])], PromptLookup())
    assert (tally.tokens, tally.calls) == (2, 1)


def test_statistical_drafters_learn_only_when_warm() -> None:
    turns = [Turn("x", [1, 2, 3], [4, 5, 6, 7, 8])] * 2
    cold, warm = Statistical(16, 4, False, None), Statistical(16, 4, False, None)
    warm.learns = True
    assert replay(turns, cold).calls == 10
    assert replay(turns, warm).calls < 10


def test_options_and_errors() -> None:
    assert len(make_drafter("tree:3,depth=1,least=0.5", None, 8).propose()[0]) == 0
    with pytest.raises(ValueError, match=r"drafter must be one of prompt-lookup, .* got 'bush'"):
        make_drafter("bush:3", None, 8)
    with pytest.raises(ValueError, match="max-gram has no option 'depth'"):
        make_drafter("max-gram,depth=3", None, 8)


def test_formats(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(data_path("tokenizers", "llama"))
    assert tokenizer is not None
    row = {"question_id": 1, "category": "c", "prompts": ["Hi", "So?"], "outputs": [" Yes ", "No"]}
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    first, second = read_turns(path, tokenizer)
    assert tokenizer.decode(first.prompt).endswith("questions. USER: Hi ASSISTANT:")
    assert tokenizer.decode(second.prompt).endswith(
        "USER: Hi ASSISTANT: Yes</s> USER: So? ASSISTANT:"
    )
    assert tokenizer.decode(second.output).strip() == "No"
    assert (first.prompt[0], first.output[-1]) == (1, 2)
    llama = read_turns(path, tokenizer, "llama2")[1]
    assert tokenizer.decode(llama.prompt) == "[INST] Hi [/INST] Yes [INST] So? [/INST]"


def test_real_answers(tmp_path: Path) -> None:
    lines = data_path("transcripts", "spec_bench_vicuna7b_dev.jsonl").read_text().splitlines()
    excerpt, out = tmp_path / "excerpt.jsonl", tmp_path / "out.json"
    excerpt.write_text("\n".join(lines[::20]) + "\n")
    tokenizer = str(data_path("tokenizers", "llama"))
    arguments = ["--transcripts", str(excerpt), "--tokenizer", tokenizer, "--json", str(out)]
    names = ["prompt-lookup", "max-gram", "max-gram+bigram", "chain:10", "tree:32"]
    assert main([*arguments, "--drafter", *names]) == 0
    found = json.loads(out.read_text())["drafters"]
    rates = {name: found[name]["tokens_per_target_call"] for name in names}
    assert 1.5 < rates["prompt-lookup"] < 2.1
    assert rates["max-gram"] < rates["max-gram+bigram"]
    assert rates["chain:10"] > rates["prompt-lookup"]
    assert rates["tree:32"] > 1.2 * rates["chain:10"]
    assert found["tree:32"]["drafted_per_call"] > 30
    assert main([*arguments, "--drafter", "tree:32", "--table", "none"]) == 0
    bare = json.loads(out.read_text())["drafters"]["tree:32"]["tokens_per_target_call"]
    assert bare < rates["tree:32"] - 0.1
