"""Promise 1 on a GPU, with CUDA graphs and without: the same bodies run under the emulation, where
a graph is the launches that were captured, with the addresses and numbers that they had."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.cuda_model import random_weights
from cascade_engine import Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.engine import loading
from cascade_engine.levels import NeuralLevel, ReviewItem, TokenRows
from cascade_engine.levels.tree import TokenTree
from cascade_engine.ops import CudaBackend, Sampler
from cascade_engine.ops.launch import Launcher
from tests.cuda.support import BF16, RecordingLauncher, assert_same_bits
from tests.cuda.test_backend import SHAPE, make_level, random_row
from tests.data import data_path
from tests.ops.support import random_weights as random_level_weights

PROMPTS = ["Once upon a time, there was a little girl", "One day, a cat", "Tom and Sam. " * 9]
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
LITTLE = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}


def on_gpu(run: Launcher) -> bool:
    return run.device.type == "cuda"


def replayed(level: NeuralLevel) -> int:
    kept = level._program._graphs
    return 0 if kept is None else sum(graph is not None for graph in kept.values())


def test_a_graph_computes_the_bits_of_its_launches(graphs: Launcher) -> None:
    """Shapes come back with other rows, lengths, pages; a wider one moves the memory in between."""
    weights = random_level_weights(2, BF16, **SHAPE)
    torch.manual_seed(1)
    rows = [random_row(60), random_row(60)]
    plain, captured = make_level(graphs, weights), make_level(graphs, weights)
    plain._program._graphs = None
    for level in (plain, captured):
        for slot, row in enumerate(rows):
            level.rows.write(slot, row)
    steps = [(0, 9), (0, 12), (1, 7), (1, 10), (0, 15), (0, 31), (0, 33), (1, 13), (0, 36), (1, 15)]
    for slot, length in [*steps, *((1, n) for n in range(18, 50, 3))]:
        expected = plain.score(slot, length, 2)
        assert_same_bits(captured.score(slot, length, 2), expected, (slot, length))
    assert replayed(captured) >= 1
    if isinstance(graphs, RecordingLauncher):
        assert graphs.replays >= 8


def test_trees_and_chains_share_a_graph(graphs: Launcher) -> None:
    """What tells them apart lies in device memory."""
    weights = random_level_weights(4, BF16, **SHAPE)
    torch.manual_seed(2)
    row, greedy = random_row(20), Sampler(temperature=0.0)
    outcomes = []
    for captures in (False, True):
        level = make_level(graphs, weights, rows=1)
        if not captures:
            level._program._graphs = None
        level.rows.write(0, row)
        length, accepted = 9, []
        for i in range(12):
            # What follows in the row is mostly wrong, and the token the model chose is right.
            tokens = [accepted[-1][1] if accepted else 3, *row[i : i + 2]]
            tree = TokenTree(tokens, [-1, 0, -1], [0.5] * 3, [1] * 3) if i % 2 else None
            if tree is None:
                level.rows.write(0, [*level.rows.read(0, 0, length), *tokens])
            end = length if tree else length + 3
            [verdict] = level.review([ReviewItem(0, length, end, greedy, tree=tree)], 1.0)
            accepted.append((verdict.num_accepted, verdict.token))
            length += verdict.num_accepted + 1
            level.truncate(0, length - 1)
        outcomes.append((accepted, level.rows.read(0, 0, length)))
        assert bool(replayed(level)) == captures
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("dtype", "params"),
    [
        ("bfloat16", {"temperature": 0.0}),
        ("float16", {"temperature": 0.9, "seed": 3, "top_p": 0.95, "presence_penalty": 0.2}),
    ],
)
def test_a_trained_model_keeps_its_tokens(
    graphs: Launcher, monkeypatch: pytest.MonkeyPatch, dtype: str, params: dict[str, Any]
) -> None:
    """stories260k, plain without graphs against cascades with them: chains, trees, automatic."""
    target = data_path("stories260k")
    monkeypatch.setattr(loading, "_memory", lambda place: 1 << 26)
    tokens = 120 if on_gpu(graphs) else 8
    expected = None
    policies = [PlainDecoding(), PlainDecoding(), FixedCascade([[6]]), FixedCascade([[6]], tree=24)]
    for i, policy in enumerate(
        [*policies, "fixed"] if on_gpu(graphs) else policies[:1] + policies[2:]
    ):
        monkeypatch.setattr(
            loading, "make_backend", lambda _, i=i: CudaBackend("cuda", 1, graphs, graphs=i > 0)
        )
        engine = Engine.load(
            target, device="cuda", dtype=dtype, max_rows=2, max_context=256, policy=policy
        )
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, **params)
        found = [g.token_ids for g in engine.generate(PROMPTS, sampling)]
        expected = expected or found
        assert found == expected, policy
        assert [len(ids) for ids in found] == [tokens] * len(PROMPTS)
        engine.check_integrity()


def test_a_billion_random_weights_keep_their_tokens(graphs: Launcher) -> None:
    """Under the emulation a little model of the same kind."""
    backend = CudaBackend("cuda", 1, graphs)
    gpu = on_gpu(graphs)
    torch.manual_seed(5)
    weights = random_weights(backend, BILLION if gpu else LITTLE, 32000 if gpu else 90, 512)
    vocab, steps = weights.config.vocab_size, 40 if gpu else 6
    rows = TokenRows(1, 512)
    level = NeuralLevel("target", weights, backend, rows, 512, 512, vocab)
    prompt = torch.randint(0, vocab, (300 if gpu else 20,)).tolist()
    for sampler in (Sampler(temperature=0.0), Sampler(temperature=0.8, seed=9, top_k=40)):
        rows.write(0, prompt)
        level.truncate(0, 0)
        for n in range(len(prompt), len(prompt) + steps):
            level.review([ReviewItem(0, n, n, sampler)], 1.0)
        plain = rows.read(0, 0, len(prompt) + steps)
        for width in (1, 3, 9):
            level.truncate(0, 0)
            assert continued(level, prompt, plain, width, sampler) == plain, width


def continued(
    level: NeuralLevel, prompt: list[int], plain: list[int], width: int, sampler: Sampler
) -> list[int]:
    """Reviews of drafts of which the last token is wrong, chains and trees in turn."""
    length, turn = len(prompt), 0
    level.rows.write(0, prompt)
    while length < len(plain):
        drafts = plain[length : length + width]
        drafts[-1] = (drafts[-1] + 1) % level.weights.config.vocab_size
        end, tree = length + len(drafts), None
        if turn % 2:
            wrong = [(plain[length] + 2) % level.weights.config.vocab_size, *drafts]
            parents = [-1, -1, *range(1, len(drafts))]
            tree = TokenTree(wrong, parents, [0.5] * len(wrong), [1] * len(wrong))
            end = length
        else:
            level.rows.write(0, [*level.rows.read(0, 0, length), *drafts])
        [verdict] = level.review([ReviewItem(0, length, end, sampler, tree=tree)], 1.0)
        assert verdict.num_accepted == len(drafts) - 1
        length += verdict.num_accepted + 1
        level.truncate(0, length - 1)
        turn += 1
    return level.rows.read(0, 0, len(plain))
