"""Kernels of one row of logits: arg max, Gumbel noise, log-sum-exp, on every instruction set."""

from __future__ import annotations

import math
import random

import pytest
import torch

from cascade_engine import _C
from tests.ops.native import ISAS, context, every_isa
from tests.reference import philox

NAN, INF = math.nan, math.inf
# Known answers of the Random123 library for philox4x32-10: counter, key, block.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def noise(ctx: _C.CpuContext, count: int, key: _C.NoiseKey, ids: list[int] | None = None):
    values, out = torch.zeros(count), torch.full((count + 1,), 99.0)
    where = None if ids is None else torch.tensor(ids, dtype=torch.int32)
    address = 0 if where is None else where.data_ptr()
    _C.perturb(ctx, values.data_ptr(), address, count, 1.0, key, out.data_ptr())
    assert out[count] == 99.0
    return out[:count]


def argmax(ctx: _C.CpuContext, values: torch.Tensor) -> int:
    return _C.argmax(ctx, values.data_ptr(), len(values))


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, block) -> None:
    assert _C.philox(counter, key) == block
    assert philox.philox(counter, key) == block


@every_isa
@pytest.mark.parametrize("vocab", [1, 3, 15, 16, 17, 63, 64, 65, 1000])
def test_noise_is_the_references(isa: str, vocab: int) -> None:
    for position, seed, sample_index in [(0, 0, 0), (5, 2**63 + 12345, 3), (2**31, 2**32 - 1, 1)]:
        key = _C.NoiseKey(seed, position, sample_index)
        expected = torch.tensor(
            philox.gumbel_row(vocab, position, seed, sample_index), dtype=torch.float64
        )
        found = noise(context(isa), vocab, key).double()
        assert ((found - expected).abs() <= 3e-7 * expected.abs().clamp(min=1)).all()


def test_every_part_of_the_key_changes_the_noise() -> None:
    ctx = context()
    keys = [(1, 2, 3, 4), (2, 2, 3, 4), (1 + 2**32, 2, 3, 4), (1, 3, 3, 4), (1, 2, 4, 4)]
    rows = [noise(ctx, 64, _C.NoiseKey(*key)) for key in [*keys, (1, 2, 3, 5)]]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)
    assert len(set(rows[0].tolist())) == 64


@every_isa
@pytest.mark.parametrize("bits", [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1])
def test_both_tails_are_finite_and_exact(isa: str, bits: int) -> None:
    """Philox is inverted to find tokens whose random bits are the extreme ones."""
    rng, key, found = random.Random(bits), (77, 78), 0
    while found < 4:
        lane = rng.randrange(4)
        block = [rng.randrange(2**32) for _ in range(4)]
        block[lane] = bits
        counter = philox.inverse((block[0], block[1], block[2], block[3]), key)
        token = counter[0] * 4 + lane
        if token >= 2**31:
            continue
        found += 1
        native_key = _C.NoiseKey(key[0] | key[1] << 32, counter[1], counter[2], counter[3])
        value = noise(context(isa), 1, native_key, [token]).item()
        assert value == pytest.approx(philox.gumbel_of_bits(bits), rel=2.5e-7, abs=1e-7)


@every_isa
def test_gathered_noise_is_the_rows(isa: str) -> None:
    ctx, key = context(isa), _C.NoiseKey(11, 4)
    row = noise(ctx, 3000, key)
    ids = [random.Random(1).randrange(3000) for _ in range(77)]
    assert torch.equal(noise(ctx, 77, key, ids), row[ids])


def test_instruction_sets_agree_closely() -> None:
    rows = [noise(context(isa), 4096, _C.NoiseKey(3, 9)) for isa in ISAS]
    for row in rows[1:]:
        assert torch.allclose(row, rows[0], rtol=1e-6, atol=1e-6)


@every_isa
def test_argmax(isa: str) -> None:
    ctx = context(isa)
    generator = torch.Generator().manual_seed(0)
    for count in [*range(1, 140), 32000]:
        values = torch.randn(count, generator=generator)
        assert argmax(ctx, values) == int(values.argmax())
        coarse = torch.randint(0, 3, (count,), generator=generator).float()  # many ties
        assert argmax(ctx, coarse) == coarse.tolist().index(coarse.max().item())


@every_isa
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([NAN, 1.0, 20.0, NAN, 20.0], 2),
        ([NAN, -INF, -INF], 1),
        ([-INF, -INF], 0),
        ([NAN] * 3, -1),
        ([NAN] * 200, -1),
        ([-INF] * 70 + [NAN, -1e38], 71),
        ([INF, 1.0, INF], 0),
        ([-0.0, 0.0], 0),
        ([], -1),
    ],
)
def test_argmax_of_odd_values(isa: str, values: list[float], expected: int) -> None:
    row = torch.tensor(values)
    assert argmax(context(isa), row) == expected
    found = _C.gumbel_argmax(context(isa), row.data_ptr(), len(row), 1.0, _C.NoiseKey(0, 0))
    # Noise settles ties of finite values; where nothing finite is, it has no say.
    assert found == expected or values[found] == max(x for x in values if x == x) > -INF


@every_isa
def test_gumbel_argmax_is_the_argmax_of_the_perturbed(isa: str) -> None:
    ctx = context(isa)
    generator = torch.Generator().manual_seed(1)
    for count in [*range(1, 140, 3), 5000]:
        values = torch.randn(count, generator=generator) * 4
        values[count // 2] = NAN
        key, out = _C.NoiseKey(count, count + 7), torch.empty(count)
        _C.perturb(ctx, values.data_ptr(), 0, count, 0.7, key, out.data_ptr())
        found = _C.gumbel_argmax(ctx, values.data_ptr(), count, 0.7, key)
        assert found == argmax(ctx, out)
        if count > 1:
            exact = values.double() / torch.tensor(0.7).double()
            exact += torch.tensor(philox.gumbel_row(count, count + 7, count), dtype=torch.float64)
            scores = exact.nan_to_num(nan=-INF)
            assert scores.max() - scores[found] < 1e-5


@every_isa
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0, 6.0, 30.0])
def test_tiles_passed_over_never_hold_the_winner(isa: str, scale: float) -> None:
    """Peaked and flat rows, with the largest logits first, last or anywhere."""
    ctx, out = context(isa), torch.empty(2000)
    generator = torch.Generator().manual_seed(4)
    for draw in range(60):
        values = torch.randn(2000, generator=generator) * scale
        if draw % 3 < 2:
            values = values.sort(descending=draw % 3 == 0).values
        values[300:500] = -INF
        values[draw::97] += 8.0
        key = _C.NoiseKey(draw, 5)
        _C.perturb(ctx, values.data_ptr(), 0, 2000, 0.8, key, out.data_ptr())
        assert _C.gumbel_argmax(ctx, values.data_ptr(), 2000, 0.8, key) == argmax(ctx, out)


@every_isa
def test_the_largest_noise_can_win_from_far_below(isa: str) -> None:
    """Under seed 510 at position 313, token 744 has the highest random bits that there are."""
    assert philox.philox((744 >> 2, 313, 0, 0), (510, 0))[744 & 3] == 2**32 - 1
    key, values = _C.NoiseKey(510, 313), torch.full((1000,), -60.0)
    values[0] = -philox.gumbel(0, 313, 510)  # perturbed: 0
    for logit, winner in ((-22.86, 744), (-22.88, 0)):
        values[744] = logit
        assert _C.gumbel_argmax(context(isa), values.data_ptr(), 1000, 1.0, key) == winner


@every_isa
def test_ties_of_perturbed_values_go_to_the_lowest_id(isa: str) -> None:
    """Where the logits are so large that the noise drowns in their rounding."""
    values = torch.zeros(1000)
    values[[70, 71, 500, 999]] = 1e12
    for position in range(20):
        key = _C.NoiseKey(1, position)
        assert _C.gumbel_argmax(context(isa), values.data_ptr(), 1000, 1.0, key) == 70


@every_isa
def test_results_do_not_depend_on_where_the_row_stands(isa: str) -> None:
    ctx, key = context(isa), _C.NoiseKey(5, 6)
    values = torch.randn(1003, generator=torch.Generator().manual_seed(2))
    seen = set()
    for shift in range(17):
        memory = torch.full((1100,), 1e30)  # a read outside the row would show
        memory[shift : shift + 1003] = values
        address, out = memory.data_ptr() + 4 * shift, torch.empty(1003)
        _C.perturb(ctx, address, 0, 1003, 1.3, key, out.data_ptr())
        chosen = _C.gumbel_argmax(ctx, address, 1003, 1.3, key)
        total = _C.log_sum_exp(ctx, address, 1003, 1.3)
        seen.add((tuple(out.tolist()), chosen, total, _C.argmax(ctx, address, 1003)))
    assert len(seen) == 1


@every_isa
def test_log_sum_exp(isa: str) -> None:
    ctx, generator = context(isa), torch.Generator().manual_seed(3)
    for count in (1, 15, 16, 17, 64, 65, 1000, 32003):
        for scale, shift, temperature in [(1, 0, 1.0), (5, 1000, 0.5), (0.01, -3e4, 2.0)]:
            values = torch.randn(count, generator=generator) * scale + shift
            values[1::7] = -INF
            exact = torch.logsumexp(values.double() / temperature, 0).item()
            found = _C.log_sum_exp(ctx, values.data_ptr(), count, temperature)
            assert abs(found - exact) < 3e-7
    assert _C.log_sum_exp(ctx, torch.tensor([-INF, -INF]).data_ptr(), 2) == -INF


@every_isa
def test_choices_follow_the_distribution(isa: str) -> None:
    """Chi-square of 20,000 draws with fixed seeds against exact probabilities."""
    values = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -2.0])
    probs = torch.softmax(values.double() / 0.8, 0)
    counts = torch.zeros(7)
    for draw in range(20000):
        key = _C.NoiseKey(draw // 100, draw % 100)
        counts[_C.gumbel_argmax(context(isa), values.data_ptr(), 7, 0.8, key)] += 1
    statistic = ((counts - 20000 * probs) ** 2 / (20000 * probs)).sum().item()
    assert statistic < 22.5  # 6 degrees of freedom: exceeded once in a thousand
