"""n-gram tables: counts against dictionaries, files against damage, lookups and chains."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cascade_engine import _C
from cascade_engine.errors import CascadeError, CheckpointError, RequestError, VocabularyMismatch
from cascade_engine.tables import (
    BuildOptions,
    build,
    build_table,
    load_table,
    read_info,
    save_table,
)
from cascade_engine.tables.__main__ import main
from cascade_engine.tables.build import BuiltTable
from tests.data import data_path
from tests.ops.native import context, propose
from tests.reference import drafting

VOCAB = 50


class OneTokenizer:
    """Stands in for a tokenizer."""

    def __init__(self, name: str = "a") -> None:
        self.name = name

    def fingerprint(self) -> str:
        return self.name * 64


def random_documents(seed: int, vocab: int = VOCAB) -> list[list[int]]:
    """Skewed tokens, so that some n-grams are frequent; documents of length 0 and 1 too."""
    rng = random.Random(seed)
    lengths = [0, 1, 2, *(rng.randrange(200) for _ in range(12))]
    return [[int(vocab * rng.random() ** 4) for _ in range(length)] for length in lengths]


def native(table: BuiltTable) -> _C.NgramTable:
    arrays = {name: memoryview(array.numpy()) for name, array in table.arrays.items()}
    return _C.NgramTable(len(table.min_counts), table.vocab_size, table.block_shift, arrays)


def reference(documents: list[list[int]], table: BuiltTable, most: int = 16):
    order = len(table.min_counts)
    counts = drafting.count_ngrams(documents, order)
    return counts, drafting.prune(counts, table.min_counts, most)


@pytest.mark.parametrize("vocab", [VOCAB, 70000])
@pytest.mark.parametrize("order", [1, 2, 4, 8])
def test_contexts_and_counts_are_the_references(vocab: int, order: int) -> None:
    for seed in range(3):
        documents = random_documents(seed, vocab)
        options = BuildOptions(order, max_successors=[3, 16, 255][seed])
        table = build_table(documents, vocab, options)
        counts, expected = reference(documents, table, options.max_successors)
        found = native(table)
        assert sum(found.contexts(n) for n in range(2, order + 1)) == sum(
            len(c) > 1 for c in expected
        )
        for known in expected:
            layers = found.lookup([1, *known])[: len(known)]
            n, total, successors = layers[-1]
            assert n == len(known)
            assert total == pytest.approx(sum(counts[known].values()), rel=0.045)
            assert [t for t, _ in successors] == [t for t, _ in expected[known]]
            numbers = [n for _, n in expected[known]]
            assert [n for _, n in successors] == pytest.approx(numbers, rel=0.045)


def test_lookups_stop_at_the_first_unknown_context() -> None:
    documents = random_documents(5)
    table = build_table(documents, VOCAB, BuildOptions(4))
    _, expected = reference(documents, table)
    found, rng = native(table), random.Random(0)
    for _ in range(2000):
        tokens = [int(VOCAB * rng.random() ** 3) for _ in range(rng.randrange(7))]
        known = 0
        while known < min(4, len(tokens)) and tuple(tokens[-known - 1 :]) in expected:
            known += 1
        assert [layer[0] for layer in found.lookup(tokens)] == list(range(1, known + 1))
    assert found.lookup([VOCAB]) == found.lookup([-1]) == []


def test_chains_fill_up_what_max_gram_leaves() -> None:
    documents = random_documents(6)
    table = build_table(documents, VOCAB, BuildOptions(3))
    _, expected = reference(documents, table)
    found, rng, filled = native(table), random.Random(1), 0
    for _ in range(300):
        tokens = [int(VOCAB * rng.random() ** 2) for _ in range(rng.randrange(1, 12))]
        corpus = [int(VOCAB * rng.random() ** 2) for _ in range(6)]
        drafted = drafting.max_gram(tokens, 8, 32, corpus)
        rest = drafting.chain(expected, tokens + drafted, 8 - len(drafted), 3)
        filled += bool(rest)
        assert propose(context(), tokens, 8, table=found, corpus=corpus) == drafted + rest
    assert filled > 100


def test_the_longest_context_decides() -> None:
    table = build_table(
        [[1, 2, 3], [1, 2, 3], [9, 2, 4], [8, 2, 4], [7, 2, 4]], 10, BuildOptions(2)
    )
    assert propose(context(), [1, 2], 1, table=native(table)) == [3]
    assert propose(context(), [5, 2], 1, table=native(table)) == [4]
    assert propose(context(), [2, 6], 1, table=native(table)) == []


@pytest.mark.parametrize("shift", [0, 1, 3, 6])
def test_the_block_shift_changes_nothing(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    documents = random_documents(7)
    plain = native(build_table(documents, VOCAB, BuildOptions(3)))
    monkeypatch.setattr(build, "LONGEST_BLOCK_SHIFT", shift)
    table = build_table(documents, VOCAB, BuildOptions(3))
    assert table.block_shift == shift
    contexts = {tuple(d[i : i + 3]) for d in documents for i in range(len(d))}
    assert all(native(table).lookup(list(c)) == plain.lookup(list(c)) for c in contexts)


def test_blocks_shrink_until_offsets_fit() -> None:
    """64 contexts with 2,000 successors each do not fit two-byte offsets in one block."""
    documents = [[a, b] for a in range(64) for b in range(64, 2064)]
    options = BuildOptions(1, max_successors=255)
    assert build_table(documents, 2064, options).block_shift == 6
    sizes = torch.full((64,), 2000)
    base, delta = build._offsets(sizes, 5)
    offsets = base.repeat_interleave(32)[:65] + delta
    assert offsets.tolist() == list(range(0, 130000, 2000))
    orders = [build._Order(*[torch.zeros(0)] * 2, sizes, sizes, *[torch.zeros(64 * 2000)] * 2)]
    arrays, shift = build._lay_out(orders, 64)
    assert shift == 5
    assert arrays["order1.successors_delta"].to(torch.int64).max() == 62000


def test_max_bytes_is_kept_by_dropping_rare_ngrams() -> None:
    documents = random_documents(8, 300)
    whole = build_table(documents, 300, BuildOptions(3))
    size = sum(array.nbytes for array in whole.arrays.values())
    for limit in (size, size - 1, size // 2):
        table = build_table(documents, 300, BuildOptions(3, max_bytes=limit))
        assert sum(array.nbytes for array in table.arrays.values()) <= limit
        assert (table.min_counts == whole.min_counts) == (limit == size)
        _, expected = reference(documents, table)
        assert native(table).contexts(3) == sum(len(c) == 3 for c in expected)
    with pytest.raises(RequestError, match="max_bytes 100 is too small"):
        build_table(documents, 300, BuildOptions(3, max_bytes=100))


@pytest.mark.parametrize(
    ("options", "documents", "message"),
    [
        (BuildOptions(0), [[1, 2]], "order must be in 1..8, got 0"),
        (BuildOptions(9), [[1, 2]], "order must be in 1..8, got 9"),
        (BuildOptions(1, max_successors=0), [[1, 2]], "max_successors must be in 1..255"),
        (BuildOptions(2, min_counts=(2, 1)), [[1, 2]], "that do not fall"),
        (BuildOptions(2, min_counts=(1,)), [[1, 2]], "must be 2 numbers"),
        (BuildOptions(1), [], "found none"),
        (BuildOptions(1), [[1, 50]], "ids in 0..49, found 1..50"),
        (BuildOptions(1), [[-1, 5]], "found -1..5"),
    ],
)
def test_wrong_build_options(options: BuildOptions, documents: list, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_table(documents, VOCAB, options)


DAMAGE: dict[str, tuple[Callable[[dict], None], str]] = {
    "missing": (lambda a: a.pop("order2.total"), "no array 'order2.total'"),
    "short totals": (lambda a: cut(a, "order1.total"), "order 1 has 49 contexts"),
    "short contexts": (lambda a: cut(a, "order2.token"), "order 2: .* context tokens for"),
    "short counts": (lambda a: cut(a, "order1.count"), "counts for .* successors"),
    "short offsets": (lambda a: cut(a, "order1.successors_delta"), "offsets of the successors"),
    "foreign token": (lambda a: put(a, "order1.successor", 3, 50), "token 50, outside"),
    "foreign context": (lambda a: put(a, "order2.token", 0, 999), "token 999, outside"),
    "unsorted": (lambda a: put(a, "order2.token", 0, 49), "not sorted at 1"),
    "falling offset": (lambda a: put(a, "order1.children_delta", 2, 0), "context 2 is 0, outside"),
    "wild offset": (lambda a: put(a, "order1.successors_base", 0, 2**31), "outside"),
    "late start": (lambda a: put(a, "order2.successors_delta", 0, 1), "context 0 is 1, outside"),
    "unowned": (lambda a: put(a, "order2.successors_delta", -1, 0), "outside|own"),
}


def cut(arrays: dict, name: str) -> None:
    arrays[name] = arrays[name][:-1]


def put(arrays: dict, name: str, index: int, value: int) -> None:
    arrays[name] = arrays[name].clone()
    arrays[name][index] = value


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_arrays_are_refused(name: str) -> None:
    table = build_table(random_documents(9), VOCAB, BuildOptions(2))
    damage, message = DAMAGE[name]
    native(table)
    damage(table.arrays)
    with pytest.raises(ValueError, match=message):
        native(table)


def saved(tmp_path: Path) -> Path:
    path = tmp_path / "t.safetensors"
    table = build_table(random_documents(9), VOCAB, BuildOptions(3))
    save_table(path, table, OneTokenizer().fingerprint(), "some text")
    return path


def test_a_file_gives_back_its_table(tmp_path: Path) -> None:
    path, documents = saved(tmp_path), random_documents(9)
    table = build_table(documents, VOCAB, BuildOptions(3))
    loaded, built = load_table(path, OneTokenizer(), VOCAB + 14), native(table)
    path.unlink()  # the mapping stays
    for document in documents:
        for i in range(len(document)):
            assert loaded.lookup(document[i : i + 3]) == built.lookup(document[i : i + 3])
    assert list(tmp_path.iterdir()) == []


def test_info(tmp_path: Path) -> None:
    info = read_info(saved(tmp_path))
    assert (info.order, info.vocab_size, info.corpus) == (3, VOCAB, "some text")
    assert info.fingerprint == "a" * 64
    assert info.tokens == sum(map(len, random_documents(9)))
    assert info.contexts[0] == VOCAB
    assert info.min_counts == (1, 2, 2)


def test_tables_of_others_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(VocabularyMismatch, match=r"another tokenizer .* aaaaaaaaaaaa, this"):
        load_table(path, OneTokenizer("b"), VOCAB)
    with pytest.raises(VocabularyMismatch, match="tokens up to 49, the models share 49"):
        load_table(path, OneTokenizer(), VOCAB - 1)
    with pytest.raises(RequestError, match="none to compare with"):
        load_table(path, None, VOCAB)


def edit_header(path: Path, edit: Callable[[dict], None]) -> None:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # keeps the arrays aligned
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.pop("__metadata__"), "format: expected .* found 'no format'"),
        (lambda h: h["__metadata__"].update(order="9"), r"order: expected a number in 1\.\.8"),
        (lambda h: h["__metadata__"].update(order="x"), "order: expected a number"),
        (lambda h: h["__metadata__"].update(order="4"), "array order3.children_base: expected"),
        (lambda h: h["__metadata__"].update(order="2"), "order2.children_base: not expected"),
        (lambda h: h["__metadata__"].update(vocab_size="49"), "order 1 has 50 contexts"),
        (lambda h: h["__metadata__"].update(vocab_size="70000"), "expected I32 .* found U16"),
        (lambda h: h["__metadata__"].update(block_shift="2"), "offsets of the successors have"),
        (lambda h: h["__metadata__"].update(tokenizer="zz"), "tokenizer: expected a SHA-256"),
        (lambda h: h["__metadata__"].update(min_counts="1"), "min_counts: expected 3 numbers"),
        (lambda h: h["order1.total"].update(dtype="I8"), "order1.total: expected U8"),
    ],
)
def test_odd_headers_are_refused(tmp_path: Path, edit: Callable, message: str) -> None:
    path = saved(tmp_path)
    edit_header(path, edit)
    with pytest.raises(CheckpointError, match=message):
        load_table(path, OneTokenizer(), VOCAB)


def test_flipped_and_missing_bytes_never_crash(tmp_path: Path) -> None:
    path, rng, refused = saved(tmp_path), random.Random(0), 0
    good = path.read_bytes()
    for trial in range(300):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 3])):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad[: rng.randrange(len(bad))] if trial % 5 == 0 else bad)
        try:
            table = load_table(path, OneTokenizer(), VOCAB)
        except CascadeError:
            refused += 1
            continue
        for _ in range(50):
            for _, _, successors in table.lookup([rng.randrange(VOCAB) for _ in range(3)]):
                assert all(0 <= token < VOCAB for token, _ in successors)
    assert 100 < refused < 300


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = str(data_path("stories260k"))
    corpus, out = tmp_path / "text.txt", tmp_path / "t.safetensors"
    corpus.write_text("Lily likes the big red ball.\n" * 2000)
    build_args = ["build", "--corpus", str(corpus), "--tokenizer", tokenizer, "--out", str(out)]
    assert main([*build_args, "--order", "4", "--max-bytes", "9000"]) == 0
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "order 4" in shown
    assert "corpus: text.txt" in shown
    assert out.stat().st_size < 9000 + 4000

    corpus.write_bytes(b"good \xff bad")
    assert main(build_args) == 1
    assert main([*build_args[:3], "--tokenizer", str(tmp_path), "--out", str(out)]) == 1
    assert main([*build_args, "--order", "12"]) == 1
    assert main(["info", str(corpus)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert all(line.startswith("error: ") for line in errors)
    assert "byte 5 is not" in errors[0]
