"""The tables that ship: whose they are, how large, how they came about; doubts in table files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cascade_engine.errors import CheckpointError, RequestError
from cascade_engine.ops import Drafter
from cascade_engine.tables import BuildOptions, build_table, load_table, prebuilt_for, read_info
from cascade_engine.tables.calibrate import calibrated_doubts
from cascade_engine.tables.files import save_table
from cascade_engine.tables.shipped import FOLDER
from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path

MOST_BYTES = 4_000_000


class OneTokenizer:
    def fingerprint(self) -> str:
        return "c" * 64


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_common_tokenizers_have_a_table(name: str) -> None:
    tokenizer = Tokenizer.load(data_path("tokenizers", name))
    assert tokenizer is not None
    path = prebuilt_for(tokenizer)
    assert path is not None
    assert path.stat().st_size <= MOST_BYTES
    info = read_info(path)
    assert info.command.startswith("python -m cascade_engine.tables build --corpus wiki.txt")
    assert info.tokens > 3_000_000
    table = load_table(path, tokenizer, tokenizer.vocab_size)
    context = tokenizer.encode("at the end of", add_bos=False, add_eos=False)
    assert tokenizer.decode([table.lookup(context)[-1][2][0][0]]).strip() == "the"


def test_others_have_none() -> None:
    assert prebuilt_for(OneTokenizer()) is None
    assert prebuilt_for(None) is None


def test_all_that_ships_is_read_by_somebody() -> None:
    prints = [read_info(path).fingerprint for path in FOLDER.glob("*.safetensors")]
    assert len(prints) == len(set(prints)) == 2


def documents(seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    words = [[rng.randrange(20) for _ in range(rng.randrange(1, 6))] for _ in range(30)]
    return [[t for _ in range(40) for t in words[int(30 * rng.random() ** 2)]] for _ in range(6)]


def test_doubts_of_a_file_reach_the_drafter(tmp_path: Path) -> None:
    table = build_table(documents(0), 20, BuildOptions(2))
    doubts = [1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5]
    path = tmp_path / "t.safetensors"
    save_table(path, table, "c" * 64, doubts=doubts)
    assert read_info(path).doubts == tuple(doubts)
    loaded = load_table(path, OneTokenizer(), 20)
    found, builtin = Drafter(1, loaded).doubts, Drafter(1).doubts
    assert found[32:34] + found[40:42] + found[80:82] + found[88:90] == doubts
    changed = [i for i in range(96) if found[i] != builtin[i]]
    assert changed == [32, 33, 40, 41, 80, 81, 88, 89]
    for wrong, message in (([1.0] * 7, "doubts: expected 8 numbers"), ([-1.0] * 8, "doubts: exp"),
                           ([0.0] * 8, r"doubts\[0\] must be > 0, got 0")):  # fmt: skip
        save_table(path, table, "c" * 64, doubts=wrong)
        with pytest.raises(CheckpointError, match=message):
            load_table(path, OneTokenizer(), 20)


def test_calibration_needs_fewer_calls_than_the_built_in_doubts() -> None:
    counted, held_out = documents(3), documents(3)[::-1]
    table = build_table(counted, 20, BuildOptions(3)).native()
    doubts = calibrated_doubts(table, held_out)
    assert len(doubts) == 12
    assert all(doubt > 0 for doubt in doubts)
    built_in = Drafter(1).doubts
    # The held-out text is the counted one: the longest contexts are to be trusted more.
    assert doubts[2] < built_in[34] or doubts[1] < built_in[33]
    with pytest.raises(RequestError, match="held-out documents"):
        calibrated_doubts(table, [[1, 2, 3]])
