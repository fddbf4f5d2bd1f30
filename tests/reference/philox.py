"""Philox4x32-10 in plain integers, written from Salmon et al., "Parallel random numbers: as easy as
1, 2, 3" (SC 2011), and the Gumbel noise that token choices are made with, in float64."""

from __future__ import annotations

import math

Words = tuple[int, int, int, int]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """One block of four 32-bit words."""
    left0, right0, left1, right1 = counter
    for i in range(ROUNDS):
        high0, low0 = divmod(MULTIPLIERS[0] * left0, 1 << 32)
        high1, low1 = divmod(MULTIPLIERS[1] * left1, 1 << 32)
        keys = [(key[k] + i * KEY_STEPS[k]) & MASK for k in (0, 1)]
        left0, right0 = high1 ^ right0 ^ keys[0], low1
        left1, right1 = high0 ^ right1 ^ keys[1], low0
    return left0, right0, left1, right1


def inverse(block: Words, key: tuple[int, int]) -> Words:
    """The counter whose block this is: under one key Philox is a bijection."""
    undo = [pow(m, -1, 1 << 32) for m in MULTIPLIERS]
    left0, right0, left1, right1 = block
    for i in reversed(range(ROUNDS)):
        keys = [(key[k] + i * KEY_STEPS[k]) & MASK for k in (0, 1)]
        old0 = right1 * undo[0] & MASK
        old1 = right0 * undo[1] & MASK
        right0 = left0 ^ keys[0] ^ (MULTIPLIERS[1] * old1 >> 32)
        right1 = left1 ^ keys[1] ^ (MULTIPLIERS[0] * old0 >> 32)
        left0, left1 = old0, old1
    return left0, right0, left1, right1


def gumbel_of_bits(bits: int) -> float:
    """Standard Gumbel noise from 32 random bits: -log(-log(u)), u = (bits + 1/2) / 2^32."""
    if bits < 1 << 31:
        exponential = -math.log((bits + 0.5) / 2**32)
    else:
        exponential = -math.log1p(-(2**32 - bits - 0.5) / 2**32)
    return -math.log(exponential)


def gumbel(token: int, position: int, seed: int, sample_index: int = 0, stream: int = 0) -> float:
    """The noise of one token id at one position."""
    key = (seed & MASK, seed >> 32)
    return gumbel_of_bits(philox((token >> 2, position, sample_index, stream), key)[token & 3])


def gumbel_row(vocab: int, position: int, seed: int, sample_index: int = 0) -> list[float]:
    """The noise of tokens 0..vocab-1 at one position."""
    key = (seed & MASK, seed >> 32)
    noise: list[float] = []
    for block in range((vocab + 3) // 4):
        words = philox((block, position, sample_index, 0), key)
        noise += [gumbel_of_bits(word) for word in words]
    return noise[:vocab]
