"""bench.replay_level: recorded decisions by hand, and an engine that says what was recorded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.drafters import make_drafter
from bench.replay import Turn, replay
from bench.replay_level import (
    LABEL,
    POLICIES,
    RecordedDecisions,
    Replayed,
    main,
    measure,
    spread,
)
from bench.shapes import RandomWeights, write_config
from cascade_engine.levels import TokenRows
from cascade_engine.tables import load_table, prebuilt_for
from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path

PROMPT, ANSWER = [1, 7, 8], [4, 5, 6, 9, 2]


class Backend:
    """Writes what random logits would: nonsense behind the frontier."""

    def __init__(self, rows: TokenRows) -> None:
        self.rows = rows
        self.calls = 0
        self.name = "backend"

    def accept(self, **arguments: Any) -> list[tuple[int, int, list[int]]]:
        self.calls += 1
        for slot, frontier in zip(arguments["rows"], arguments["frontiers"], strict=True):
            self.rows.tokens[slot, frontier] = 77
        return []


def decide(row: list[int], frontier: int, length: int, trees: Any = ()) -> tuple[Any, list[int]]:
    rows = TokenRows(2, 16)
    rows.write(1, row)
    decisions = RecordedDecisions(Backend(rows), rows)  # type: ignore[arg-type]
    decisions.turns = [Turn("x", PROMPT, ANSWER), Turn("x", [*PROMPT, *ANSWER[:2], 3], [8, 2])]
    arguments = {"rows": [1], "frontiers": [frontier], "lengths": [length], "trees": list(trees)}
    (verdict,) = decisions.accept(**arguments)
    assert decisions._backend.calls == 1  # type: ignore[attr-defined]
    assert decisions.name == "backend"
    return verdict, rows.read(1, 0, frontier + verdict[0] + 1)


def test_a_chain_is_kept_as_far_as_it_was_said() -> None:
    assert decide([*PROMPT, 4, 5, 8], 3, 6) == ((2, 6, []), [*PROMPT, 4, 5, 6])
    assert decide([*PROMPT, 9], 3, 4) == ((0, 4, []), [*PROMPT, 4])
    assert decide([*PROMPT, 4, 5], 5, 5) == ((0, 6, []), [*PROMPT, 4, 5, 6])


def test_the_last_token_is_the_levels_own() -> None:
    assert decide([*PROMPT, *ANSWER], 3, 8) == ((4, 2, []), [*PROMPT, *ANSWER])


def test_a_tree_is_walked() -> None:
    tree = ([9, 4, 6, 5, 6], [-1, -1, 1, 1, 3], [1.0] * 5)
    assert decide([*PROMPT, 9], 3, 8, [tree]) == ((3, 9, [1, 3, 4]), [*PROMPT, 4, 5, 6, 9])
    # A row without nodes is a chain, also beside trees.
    assert decide([*PROMPT, 4], 3, 4, [([], [], [])])[0] == (1, 5, [])


def test_the_longest_prompt_decides() -> None:
    row = [*PROMPT, 4, 5, 3]
    assert decide([*row, 8], 6, 7) == ((1, 2, []), [*row, 8, 2])


@pytest.mark.parametrize(("row", "frontier"), [([5, 6], 2), ([*PROMPT, *ANSWER], 8)])
def test_rows_without_an_answer(row: list[int], frontier: int) -> None:
    with pytest.raises(LookupError, match=f"no recorded answer from token {frontier} on"):
        decide(row, frontier, frontier)


def test_random_weights_need_no_file(tmp_path: Any) -> None:
    config = write_config("7b", "bf16", tmp_path)
    weights = RandomWeights(config)
    weights.expect(config.tensor_shapes())
    name = "model.layers.31.mlp.down_proj.weight"
    parts = list(weights.slices(name))
    assert sum(len(part) for _, part in parts) == 4096
    assert [first for first, _ in parts] == list(range(0, 4096, len(parts[0][1])))
    assert all(part.shape[1] == 11008 for _, part in parts)
    assert 0.01 < float(parts[0][1].float().std()) < 0.03
    assert torch.equal(weights.tensor("model.norm.weight"), torch.ones(4096))


def test_turns_from_all_over_the_file() -> None:
    turns = [Turn(str(i), [1] * i, [2]) for i in range(10)]
    assert [t.category for t in spread(turns, 3, 100)] == ["0", "3", "6"]
    assert [t.category for t in spread(turns, None, 5)] == ["0", "1", "2", "3"]


def test_the_engine_says_what_was_recorded_in_as_many_calls() -> None:
    tokenizer = Tokenizer.load(data_path("tokenizers", "llama"))
    assert tokenizer is not None
    question = "Name the sea and the sea and the sea."
    answer = "The sea and the sea and the lake, the sea and the lake of the sea and the lake."
    turn = Turn("x", tokenizer.encode(question), tokenizer.encode(answer, False, True))
    replayed = Replayed("15m", "bfloat16", tokenizer, 1, 128)
    report = measure(replayed, [turn], 100)
    assert set(report) == {f"{name}, {LABEL}" for name in POLICIES}
    assert all(found["tokens"] == len(turn.output) for found in report.values())
    table = load_table(prebuilt_for(tokenizer) or "", tokenizer, 32000)
    for name, drafter in (("chain 10", "max-gram+bigram:10"), ("tree 16", "tree:16,least=0.002")):
        expected = replay([turn], make_drafter(drafter, table, 128)).calls
        calls = len(turn.output) / report[f"{name}, {LABEL}"]["tokens_per_target_call"]
        assert expected <= round(calls) <= expected + 1, name  # the prompt's pass drafts nothing
        assert expected < len(turn.output)


def test_errors(tmp_path: Any) -> None:
    for wrong in (["--turns", "0"], ["--transcripts", str(tmp_path / "none.jsonl")]):
        with pytest.raises(SystemExit):
            main(wrong)
