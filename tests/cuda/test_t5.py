"""Encoder-decoders on the cuda backend: the reference's numbers, bits that depend on nothing else
in a pass, sources that forks share and rollbacks leave, and the engine's promise."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.demo.family import EXAMPLE_QUESTION, t5_family
from cascade_engine.engine import loading
from cascade_engine.engine.loading import load_model
from cascade_engine.errors import ConfigError
from cascade_engine.levels import EncoderDecoderLevel, ReviewItem, TokenRows
from cascade_engine.levels.tree import TokenTree
from cascade_engine.models import t5
from cascade_engine.models.t5 import T5Weights
from cascade_engine.ops import CpuBackend, CudaBackend, ReferenceOps, Sampler
from cascade_engine.ops.launch import Launcher
from tests.cuda.conftest import needs_gpu
from tests.cuda.support import BF16, F16, RecordingLauncher, assert_same_bits
from tests.cuda.test_vertical import Calls
from tests.models.support import random_llama, random_t5

VOCAB, START, CAPACITY = 61, 0, 352
SHAPE: dict[str, object] = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "d_kv": 16,  # 3 heads of 16 are not 24
    "d_ff": 40,
    "num_heads": 3,
    "num_layers": 1,
    "num_decoder_layers": 2,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Version 1.0: ReLU, a tied and scaled head. Version 1.1: the GELU gate, a head of its own; an
    "odd" one has a gate that is no part of its product."""
    root = tmp_path_factory.mktemp("models")
    for name, seed, more in (("v1.0", 0, {}), ("v1.1", 1, {}), ("odd", 1, {"d_ff": 42})):
        random_t5(root / name, seed, **{**SHAPE, **more})
    return {path.name: path for path in root.iterdir()}


class Level:
    """A level of a few rows over the launchers under test."""

    def __init__(self, run: Launcher, directory: Path, dtype: torch.dtype, rows: int = 3) -> None:
        backend = CudaBackend(threads=1, launcher=run)
        weights = load_model(directory, backend, dtype)
        assert isinstance(weights, T5Weights)
        storage = TokenRows(rows, CAPACITY)
        self.level = EncoderDecoderLevel(
            "level", weights, backend, storage, CAPACITY, CAPACITY * rows, VOCAB
        )

    def write(self, slot: int, source: list[int], decoded: list[int]) -> None:
        self.level.rows.write(slot, [*source, START, *decoded], len(source))

    def score(self, slot: int, source: list[int], decoded: list[int], wanted: int) -> torch.Tensor:
        """Logits behind the last `wanted` decoded tokens; nothing but the source stays cached."""
        self.write(slot, source, decoded)
        self.level.truncate(slot, len(source))
        return self.level.score(slot, len(source) + 1 + len(decoded), wanted)

    def source_bits(self, slot: int) -> torch.Tensor:
        """Cross-attention keys and values of every layer, in the order of the source."""
        data = self.level.storage.data
        pages = self.level.pages.block_table[slot].long()
        heads, dim = 3, 16
        part = data.cpu()[:, :, pages].view(2, 2, len(pages), heads, 16, dim)
        rows = part.permute(0, 1, 2, 4, 3, 5).reshape(2, 2, -1, heads, dim)
        return rows[:, :, : self.level.rows.source(slot)].clone()


def tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1, VOCAB) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "dtype"), [("v1.0", BF16), ("v1.0", F16), ("v1.1", BF16), ("odd", BF16)]
)
def test_logits_are_the_references(
    run: Launcher, models: dict[str, Path], name: str, dtype: torch.dtype
) -> None:
    """A source and decoded tokens that both cross a chunk of 256 positions between them."""
    source, decoded = tokens(250, 1), tokens(12, 2)
    ours = Level(run, models[name], dtype).score(1, source, decoded, 5)
    weights = load_model(models[name], CpuBackend(1), torch.float32)
    assert isinstance(weights, T5Weights)
    layers = weights.config.num_layers
    reference = ReferenceOps(source, source=len(source))
    caches = list(reference.caches(layers, 3, 16))
    t5.encode(reference, weights, caches)
    behind = ReferenceOps([START, *decoded], len(source), 5, source=len(source))
    exact = t5.decode(behind, weights, caches)
    error = (ours.double() - exact).abs().max() / exact.abs().max()
    assert error < (0.05 if dtype == BF16 else 0.01), error


def test_an_encoder_does_not_see_its_companions(run: Launcher, models: dict[str, Path]) -> None:
    """Bits of its output and of the keys and values it leaves, alone and beside other lengths."""
    sources = [tokens(n, n) for n in (1, 17, 258)]
    alone = Level(run, models["v1.1"], BF16, 1)
    together = Level(run, models["v1.1"], BF16)
    outputs = []
    for slot, source in enumerate(sources):
        together.write(slot, source, [])
    together.level.encode([2, 0, 1])
    for slot in (2, 0, 1):
        alone.level.truncate(0, 0)
        alone.write(0, sources[slot], [])
        alone.level.encode([0])
        outputs.append(alone.level.encoder_output())
        assert_same_bits(together.source_bits(slot), alone.source_bits(0), slot)
    assert_same_bits(together.level.encoder_output(), torch.cat(outputs))


@pytest.mark.parametrize("name", ["v1.0", "v1.1"])
def test_reviews_compute_the_bits_of_single_steps(
    run: Launcher, models: dict[str, Path], name: str
) -> None:
    """Up to 64 tokens at once, beside other rows, on other pages."""
    source, decoded = tokens(240, 3), tokens(63, 4)
    tried = Level(run, models[name], BF16)
    level = tried.level
    tried.write(0, source, decoded)
    first = len(source) + 1
    single = torch.cat([level.score(0, first + n, 1) for n in range(20)])
    source_bits = tried.source_bits(0)
    for start, count in ((0, 64), (5, 3), (2, 17)):
        level.truncate(0, first + start - 1)
        ours = level.score(0, first + start + count - 1, count)[: 20 - start]
        assert_same_bits(ours, single[start : start + count], (start, count))
    tried.write(2, tokens(40, 5), tokens(9, 6))
    tried.write(1, source, decoded)
    level._feed([2, 1], [50, first + 8], [1, 9])
    assert_same_bits(level._recorder.read(level._logits)[1:], single[:9], "a batch")
    assert_same_bits(tried.source_bits(0), source_bits, "the source")


def test_forks_share_the_source_and_rollbacks_leave_it(
    run: Launcher, models: dict[str, Path]
) -> None:
    source, decoded = tokens(39, 7), tokens(20, 8)
    tried = Level(run, models["v1.1"], BF16)
    level = tried.level
    expected = tried.score(0, source, decoded, 6)
    bits = tried.source_bits(0)
    runs = []
    encode, level._encode = level._encode, lambda slots: (runs.append(slots), encode(slots))
    level.fork(0, 2, len(source) + 12)
    tried.write(2, source, decoded)
    pages = level.pages.block_table
    assert torch.equal(pages[2, :2], pages[0, :2])
    assert_same_bits(level.score(2, len(source) + 21, 6), expected, "fork")
    level.truncate(2, len(source))
    for slot in (0, 2):
        assert_same_bits(tried.source_bits(slot), bits, slot)
    assert_same_bits(tried.score(2, source, decoded, 6), expected, "after a rollback")
    assert not runs
    level.truncate(2, len(source) - 1)  # within the source: nothing is kept
    assert level.pages.length[2] == 0
    level.pages.check_integrity()


def test_a_tree_behind_a_source(run: Launcher, models: dict[str, Path]) -> None:
    """Distances are by depth, the source is seen by every node, and penalties count neither it nor
    other branches: what is accepted is what single steps choose."""
    source, sampler = tokens(250, 9), {"temperature": 0.8, "seed": 4, "frequency_penalty": 3.0}
    given = Sampler(**sampler, prompt_length=251, source_length=250)
    plain = Level(run, models["v1.1"], BF16, 1).level
    plain.rows.write(0, [*source, START], 250)
    for n in range(251, 257):
        plain.review([ReviewItem(0, n, n, given)], 1.0)
    truth = plain.rows.read(0, 251, 257)
    wrong = [t % (VOCAB - 1) + 1 for t in truth]
    level = Level(run, models["v1.1"], BF16, 1).level
    level.rows.write(0, [*source, START], 250)
    drafted = [wrong[0], truth[0], truth[1], wrong[1], truth[2], truth[3], wrong[4], truth[4]]
    tree = TokenTree(drafted, [-1, -1, 1, 0, 2, 4, 5, 5], [1.0] * 8, [1] * 8)
    [verdict] = level.review([ReviewItem(0, 251, 251, given, tree=tree)], 1.0)
    assert (list(verdict.path), verdict.token) == ([1, 2, 4, 5, 7], truth[5])
    level.truncate(0, 256)
    assert level.rows.read(0, 251, 257) == truth
    expected = plain.score(0, 257, 1)
    assert_same_bits(level.score(0, 257, 1), expected, "the path's keys have moved")


def test_what_a_row_may_feed(emulated: Launcher, models: dict[str, Path]) -> None:
    tried = Level(emulated, models["v1.0"], BF16)
    tried.write(0, tokens(9, 1), [3])
    level = tried.level
    for program, start, count, message in (
        (level._program, 4, 7, "its source ends at 9"),
        (level._encoder, 0, 8, "an encoder takes the whole source"),
    ):
        with pytest.raises(ValueError, match=message):
            program.run([0], [start], [count], [0])
    level.rows.write(1, [5, 6], 0)
    with pytest.raises(ValueError, match="row 1 has no source"):
        level._program.run([1], [0], [2], [0])


@pytest.fixture
def backend(run: Launcher, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Engines run on the launchers under test, with graphs where asked for."""
    monkeypatch.setattr(loading, "_memory", lambda place: 1 << 26)

    def use(graphs: bool) -> None:
        launcher = run if run.captures else RecordingLauncher(run)
        made = lambda options: CudaBackend("cuda", 1, launcher, graphs=graphs)  # noqa: E731
        monkeypatch.setattr(loading, "make_backend", made)

    return use


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("v1.0", {"temperature": 0.0}),
        ("v1.1", {"temperature": 0.9, "seed": 3, "top_p": 0.95, "presence_penalty": 0.6}),
    ],
)
def test_the_cascade_changes_no_token(
    backend: Callable[..., None],
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    params: dict[str, Any],
) -> None:
    """Ragged encoders in one batch: plain without graphs against chains and trees with them, under
    a draft model and under Max-Gram alone. Everything is drafted where it is reviewed."""
    prompts = [tokens(3, 1) * 5, tokens(32, 2), [7, 8, 9] * 6]
    sampling = SamplingParams(max_tokens=9, ignore_eos=True, **params)
    expected: list[list[int]] = []
    calls = Calls(monkeypatch)
    for policy, drafts, way in (
        (PlainDecoding(), [], "accept"),
        (FixedCascade([[5]], tree=12), [], "run"),
        (FixedCascade([[3, 2], [0, 4]]), ["odd"], "segments"),
        (FixedCascade([[3, 0], [0, 0]]), ["odd"], "draft"),
    ):
        calls.clear()
        backend(graphs=bool(expected))
        engine = Engine.load(
            models[name],
            [models[draft] for draft in drafts],
            device="cuda",
            dtype="bfloat16",
            max_rows=2,
            max_context=128,
            policy=policy,
        )
        found = [g.token_ids for g in engine.generate(prompts, sampling)]
        expected = expected or found
        assert found == expected, policy
        assert calls.waits == len(calls.rows) - len(calls.of("propose"))
        assert calls.rows[0][0] == way, "what the prompt joins"
        assert len(calls.of(way)) > 8
        assert not calls.of("propose_trees")
        assert not calls.of("propose")  # also where a row beside has nothing to draft for
        if way == "run" and not drafts:
            assert len(calls.of("accept")) <= len(prompts)  # at its last token, likewise
        engine.check_integrity()
        if drafts:
            (again,) = engine.generate(prompts[1:2], sampling)
            assert again.token_ids == expected[1], "from cached pages"
            assert again.stats.cached_tokens > 0
        engine.clear_cache()
        assert all(level.pages.free_pages == level.pages.pages for level in engine.neural)
    assert len({tuple(ids) for ids in expected}) == 3


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_embedded_pair_keeps_its_tokens(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """A trained target, plain without graphs against its draft, trees and the automatic policy with
    them, eight questions of different lengths at a time."""
    pair = t5_family()
    questions = [EXAMPLE_QUESTION[: 6 + 3 * i] for i in range(8)] + [EXAMPLE_QUESTION * 20]
    sampling = SamplingParams(max_tokens=80, temperature=temperature, seed=5, ignore_eos=True)
    expected = None
    plain, chain = PlainDecoding(), FixedCascade(pair.k_matrix)
    for policy in (plain, chain, FixedCascade(pair.k_matrix, tree=24), "auto"):
        graphs = expected is not None
        made = lambda options, graphs=graphs: CudaBackend("cuda", graphs=graphs)  # noqa: E731
        monkeypatch.setattr(loading, "make_backend", made)
        engine = Engine.load(
            pair.target,
            () if policy is plain else pair.drafts,
            device="cuda",
            dtype="bfloat16",
            max_rows=8,
            policy=policy,
        )
        found = [g.token_ids for g in engine.generate(questions, sampling)]
        expected = expected or found
        assert found == expected, policy
        engine.check_integrity()


def test_refusals(backend: Callable[..., None], models: dict[str, Path], tmp_path: Path) -> None:
    backend(graphs=False)
    with pytest.raises(ConfigError, match=r"float16 is not supported for T5 v1\.1.*65504"):
        Engine.load(models["v1.1"], device="cuda", dtype="float16")
    random_llama(tmp_path / "llama", 1, vocab_size=VOCAB)
    with pytest.raises(ConfigError, match="decoder-only LLaMA"):
        Engine.load(models["v1.0"], [tmp_path / "llama"], device="cuda", dtype="bfloat16")
