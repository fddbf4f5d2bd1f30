"""Peers compute the engine's model, and a pass leaves them as they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench.peers import Ours, PeerDisagreement, Transformers, check_agreement

CONTEXT = 40


@pytest.fixture(scope="module")
def ours(tiny: Path) -> Ours:
    return Ours(tiny, "float32", 1, CONTEXT)


class Scaled:
    """Ours with logits a little too large."""

    def __init__(self, ours: Ours, factor: float) -> None:
        self.ours, self.factor = ours, factor

    def logits(self, tokens: Sequence[int], wanted: int) -> torch.Tensor:
        return self.ours.logits(tokens, wanted) * self.factor


def test_a_peer_with_other_logits_is_refused(ours: Ours) -> None:
    assert check_agreement(ours, Scaled(ours, 1.0), "x", ours.vocab, 0.0) == 0.0
    found = check_agreement(ours, Scaled(ours, 1.01), "x", ours.vocab, 0.02)
    assert found == pytest.approx(0.01 / 1.01, rel=1e-3)
    with pytest.raises(PeerDisagreement, match=r"x's logits differ from ours by 0\.0099"):
        check_agreement(ours, Scaled(ours, 1.01), "x", ours.vocab, 0.009)
    with pytest.raises(PeerDisagreement, match="differ from ours by nan"):
        check_agreement(ours, Scaled(ours, float("nan")), "x", ours.vocab, 1.0)


def test_transformers_agrees(ours: Ours, tiny: Path) -> None:
    peer = Transformers(tiny, torch.float32, 1, CONTEXT)
    assert check_agreement(ours, peer, "hf", ours.vocab, 1e-4) > 0
    for run in (lambda: peer.step(5), peer.prefill):
        run()
        assert peer.cache.get_seq_length() == CONTEXT


def test_passes_start_at_the_context(ours: Ours) -> None:
    for tokens in (1, 7):
        ours.step(tokens)
        assert ours.level.pages.length[0] == CONTEXT + tokens
    ours.logits([1, 2, 3], 2)
    assert ours.level.pages.length[0] == CONTEXT
    ours.prefill()
    assert ours.level.pages.length[0] == 0


def test_a_step_reads_the_weights_and_the_context(ours: Ours) -> None:
    weights = 512 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64 + 16  # 16: rope's base
    cache = 2 * 2 * 64 * CONTEXT
    assert ours.bytes_per_step() == 4 * (weights + cache)


def test_the_share_outside_native_code_is_one(ours: Ours) -> None:
    program, accept = ours.level._program, ours.level.backend.accept
    found = ours.outside_native(tokens=8, repeats=2)
    assert 0 < found["share"] < 1
    assert found["seconds_per_token"] > 0
    assert (ours.level._program, ours.level.backend.accept) == (program, accept)
