"""An encoder-decoder level: the source is encoded once and whole, shared by forks, untouched by
rollbacks; its bits do not depend on companions, pages, threads or the instruction set's tiles."""

from __future__ import annotations

import random

import pytest
import torch

from cascade_engine.engine.loading import load_model
from cascade_engine.errors import CapacityError
from cascade_engine.levels import EncoderDecoderLevel, ReviewItem, TokenRows
from cascade_engine.models.t5 import T5Weights
from cascade_engine.ops import CpuBackend, Sampler
from tests.models.support import random_t5
from tests.ops.native import every_isa
from tests.ops.support import BF16, F32, assert_same_bits, cached

CAPACITY, VOCAB, START = 500, 130, 0


@pytest.fixture(scope="module", params=[(0, F32), (1, BF16)], ids=["v1.0 f32", "v1.1 bf16"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> T5Weights:
    seed, dtype = request.param
    directory = tmp_path_factory.mktemp("t5")
    random_t5(directory, seed, vocab_size=VOCAB, num_layers=2, num_decoder_layers=2, num_heads=3)
    loaded = load_model(directory, CpuBackend(1), dtype)
    assert isinstance(loaded, T5Weights)
    return loaded


class Level:
    """A level of `rows` rows, and what it holds of each."""

    def __init__(
        self, weights: T5Weights, rows: int = 4, tokens: int = 2200, isa: str = "", threads: int = 1
    ) -> None:
        backend = CpuBackend(threads, isa)
        storage = TokenRows(rows, CAPACITY)
        self.level = EncoderDecoderLevel(
            "level", weights, backend, storage, CAPACITY, tokens, VOCAB
        )

    def write(self, slot: int, source: list[int], decoded: list[int]) -> None:
        self.level.rows.write(slot, [*source, START, *decoded], len(source))

    def score(self, slot: int, source: list[int], decoded: list[int]) -> torch.Tensor:
        """Logits after the start token and after each decoded one."""
        self.write(slot, source, decoded)
        self.level.truncate(slot, len(source))
        length = len(source) + 1 + len(decoded)
        return self.level.score(slot, length, 1 + len(decoded))

    def source_bits(self, slot: int) -> torch.Tensor:
        """Cross-attention keys and values of every layer, `[layers, 2, source, heads, dim]`."""
        config = self.level.weights.config
        source = int(self.level.rows.sources[slot])
        table = self.level.pages.block_table[slot]
        return cached(self.level.storage.data, table, source, config.num_kv_heads).clone()


def random_tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1, VOCAB) for _ in range(count)]


SOURCES = (1, 15, 16, 17, 100, 255, 256, 300)


@every_isa
def test_an_encoder_does_not_see_its_companions(isa: str, weights: T5Weights) -> None:
    """Bits of the encoder's output and of every key and value. Breaks when a batch, a page or a
    thread changes an order, or a row reads another's source."""
    rng = random.Random(1)
    sources = [random_tokens(rng, length) for length in SOURCES]
    alone = Level(weights, 1, isa=isa)
    expected, hidden = [], []
    for source in sources:
        alone.level.truncate(0, 0)
        alone.write(0, source, [])
        alone.level.encode([0])
        expected.append(alone.source_bits(0))
        hidden.append(alone.level.encoder_output())
    for threads, count in ((1, 2), (2, 8), (2, 3)):
        together = Level(weights, len(sources), isa=isa, threads=threads)
        chosen = rng.sample(range(len(sources)), count)
        for slot in chosen:
            together.write(slot, sources[slot], [])
        together.level.encode(chosen)
        for slot in chosen:
            assert_same_bits(together.source_bits(slot), expected[slot], f"source {slot}")
        output = torch.cat([hidden[slot] for slot in chosen])
        assert_same_bits(together.level.encoder_output(), output, chosen)


@every_isa
def test_any_history_gives_the_bits_of_a_fresh_start(isa: str, weights: T5Weights) -> None:
    """Rows of several sources fed in pieces, cut back, forked and gone on with. The source's bits
    stay as they were. Breaks when a rollback or a fork touches the source."""
    rng = random.Random(2)
    oracle, tried = Level(weights, 1, isa=isa), Level(weights, 4, isa=isa, threads=2)
    rows = {slot: (random_tokens(rng, rng.choice(SOURCES)), list[int]()) for slot in range(3)}
    before = {}
    for step in range(60):
        slot = rng.randrange(3)
        source, decoded = rows[slot]
        keep = rng.randint(0, len(decoded))
        decoded = decoded[:keep] + random_tokens(rng, rng.choice([1, 1, 5, 20]))
        rows[slot] = source, decoded
        tried.level.truncate(slot, len(source) + 1 + keep)
        tried.write(slot, source, decoded)
        start = max(tried.level.pages.length[slot], len(source))
        length = len(source) + 1 + len(decoded)
        wanted = length - start
        ours = tried.level.score(slot, length, wanted)
        oracle.level.truncate(0, 0)
        expected = oracle.score(0, source, decoded)[-wanted:]
        assert_same_bits(ours, expected, f"step {step}, source {len(source)}")
        bits = tried.source_bits(slot)
        assert_same_bits(bits, before.setdefault(slot, bits), f"step {step}: source")
        tried.level.truncate(slot, length - 1)
        if rng.random() < 0.3:
            _check_fork(tried, oracle, slot, rows[slot], rng)
        tried.level.pages.check_integrity()


def _check_fork(
    tried: Level, oracle: Level, slot: int, row: tuple[list[int], list[int]], rng: random.Random
) -> None:
    """Row 3 forks from `slot` and goes its own way, on the same pages of the source."""
    source, decoded = row
    tried.level.fork(slot, 3, len(source) + 1 + len(decoded) // 2)
    whole = len(source) // 16
    tables = tried.level.pages.block_table
    assert torch.equal(tables[3, :whole], tables[slot, :whole])
    decoded = decoded[: len(decoded) // 2] + random_tokens(rng, 3)
    tried.write(3, source, decoded)
    length = len(source) + 1 + len(decoded)
    assert tried.level.pages.length[3] >= len(source)  # nothing is left to encode
    oracle.level.truncate(0, 0)
    ours = tried.level.score(3, length, 2)
    assert_same_bits(ours, oracle.score(0, source, decoded)[-2:], "fork")
    tried.level.truncate(3, 0)


def test_a_source_is_encoded_once(weights: T5Weights) -> None:
    """Breaks when a pass encodes again, or a cut within the source leaves half of it."""
    level = Level(weights).level
    runs: list[list[int]] = []
    encoder = level._encoder

    class Counting:
        def run(self, slots: list[int], *rest: object) -> None:
            runs.append(slots)
            encoder.run(slots, *rest)

    level._encoder = Counting()
    rng = random.Random(3)
    sources = {slot: random_tokens(rng, 40 + slot) for slot in (2, 0, 1)}
    for slot, source in sources.items():
        level.rows.write(slot, [*source, START, *random_tokens(rng, 30)], len(source))
    level.prefill(2, 42)
    greedy = Sampler(temperature=0.0)
    items = [ReviewItem(slot, len(s) + 1, len(s) + 5, greedy) for slot, s in sources.items()]
    for _ in range(3):
        level.review(items, 1.0)
        for slot, source in sources.items():
            level.truncate(slot, len(source))
    assert runs == [[2], [0, 1]]
    level.truncate(0, 39)  # within the source
    assert level.pages.length[0] == 0
    level.review(items, 1.0)
    assert runs == [[2], [0, 1], [0]]


def test_a_source_that_does_not_fit_changes_nothing(weights: T5Weights) -> None:
    tried = Level(weights, 3, tokens=320)
    rng = random.Random(4)
    sources = [random_tokens(rng, 200), random_tokens(rng, 150), random_tokens(rng, 90)]
    first = tried.score(0, sources[0], [5, 6])
    tried.write(1, sources[1], [])
    with pytest.raises(CapacityError, match=r"cache is full: 10 pages .* 7 of 20 free"):
        tried.level.encode([1])
    assert tried.level.pages.length == [203, 0, 0]
    tried.score(2, sources[2], [7])
    assert_same_bits(tried.score(0, sources[0], [5, 6]), first)
