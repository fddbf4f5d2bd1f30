"""The cuda backend end to end: models, reviews and the engine's promise, on the emulated kernels
(and on a GPU where there is one)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade_engine.engine import Engine, loading
from cascade_engine.errors import RequestError
from cascade_engine.levels import NeuralLevel, ReviewItem, StatisticalLevel, TokenRows
from cascade_engine.levels.statistical import Proposal
from cascade_engine.levels.tree import TokenTree
from cascade_engine.models import llama
from cascade_engine.models.llama import LlamaLayer, LlamaWeights
from cascade_engine.ops import CudaBackend, LinearWeight, ReferenceOps, Sampler
from cascade_engine.ops.cuda import check_capability
from cascade_engine.ops.launch import Launcher
from cascade_engine.ops.weights import unpack_linear
from cascade_engine.params import SamplingParams
from cascade_engine.policy import FixedCascade, PlainDecoding
from tests.cuda.support import BF16, F16, assert_same_bits
from tests.models.support import random_llama
from tests.ops.support import random_weights

SHAPE = {"hidden_size": 40, "intermediate_size": 52, "head_dim": 8, "vocab_size": 66}


def on(backend: CudaBackend, weights: LlamaWeights) -> LlamaWeights:
    """The same weights in the backend's layout."""

    def move(w: LinearWeight) -> LinearWeight:
        return backend.pack_linear(unpack_linear(w), weights.dtype, w.bias)

    layers = []
    for layer in weights.layers:
        moved: dict[str, Any] = {
            f.name: move(v) if isinstance(v := getattr(layer, f.name), LinearWeight) else v
            for f in dataclasses.fields(LlamaLayer)
        }
        layers.append(LlamaLayer(**moved))
    head = move(weights.head)
    table = weights.embedding
    return dataclasses.replace(
        weights,
        layers=tuple(layers),
        head=head,
        embedding=head if isinstance(table, LinearWeight) else table,
    )


def make_level(run: Launcher, weights: LlamaWeights, rows: int = 2) -> NeuralLevel:
    backend = CudaBackend(threads=1, launcher=run)
    return NeuralLevel("target", on(backend, weights), backend, TokenRows(rows, 320), 320, 640, 66)


def random_row(count: int) -> list[int]:
    return torch.randint(0, 66, (count,)).tolist()


@pytest.mark.parametrize(("dtype", "tied"), [(BF16, False), (F16, True)])
def test_logits_are_the_references(run: Launcher, dtype: torch.dtype, tied: bool) -> None:
    """A prompt in two passes of which the second crosses a page and a chunk."""
    inner = 56 if tied else 52  # the gate is part of the product where it divides by 8
    shape = {**SHAPE, "intermediate_size": inner}
    weights = random_weights(1, BF16, tie_word_embeddings=tied, **shape)
    if dtype == F16:
        weights = dataclasses.replace(weights, dtype=F16)
    level, row = make_level(run, weights), random_row(262)
    level.rows.write(1, row)
    level.prefill(1, 240)
    ours = level.score(1, 262, 3)
    reference = ReferenceOps(row, wanted=3)
    config = weights.config
    caches = reference.caches(config.num_layers, config.num_kv_heads, config.head_dim)
    exact = llama.forward(reference, weights, caches)
    error, size = (ours.double() - exact).abs().max(), exact.abs().max()
    assert error < (0.04 if dtype == BF16 else 0.01) * size


def test_gates_are_interleaved_once(emulated: Launcher) -> None:
    """Recording fuses the gate into the product and reorders the weight; it stays the same
    matrix."""
    backend = CudaBackend(threads=1, launcher=emulated)
    dense, bias = torch.randn(2 * 24, 40).to(BF16), torch.randn(48)
    weight = backend.pack_linear(dense, BF16, bias)
    for _ in range(2):
        recorder = backend.recorder()
        x = recorder.rms_norm(
            recorder.embedding(torch.randn(5, 40).to(BF16)), torch.ones(40), 1e-5, BF16
        )
        recorder.swiglu(recorder.linear(x, weight), BF16)
        assert len(recorder.program.steps) == 3
        assert torch.equal(unpack_linear(weight), dense)
    assert weight.bias is not None
    assert torch.equal(weight.bias.view(3, 2, 8).transpose(0, 1).reshape(48), bias)


def test_reviews_compute_the_bits_of_single_steps(run: Launcher) -> None:
    level, row = make_level(run, random_weights(2, BF16, **SHAPE)), random_row(24)
    level.rows.write(0, row)
    single = torch.cat([level.score(0, n, 1) for n in range(1, 25)])
    for cut in (0, 7, 23):
        level.truncate(0, cut)
        assert_same_bits(level.score(0, 24, 24 - cut), single[cut:], cut)


def test_a_review_says_how_many_logit_rows_it_needs(emulated: Launcher) -> None:
    backend = CudaBackend(threads=1, launcher=emulated)
    rows = {"rows": [0, 1], "frontiers": [2, 1], "lengths": [3, 3], "samplers": [Sampler()] * 2}
    with pytest.raises(ValueError, match=r"the rows need 5 logit rows .* got 7"):
        backend.accept(
            logits=0, logits_stride=4, vocab=4, tokens=0, token_stride=8, probs=0, **rows,
            logit_rows=7,
        )  # fmt: skip


SAMPLERS = [
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 5, "top_k": 9, "top_p": 0.9, "frequency_penalty": 0.4},
]


@pytest.mark.parametrize("params", SAMPLERS)
def test_the_cascade_changes_no_token(run: Launcher, params: dict[str, Any]) -> None:
    """Two rows decoded one token at a time, then with drafts from Max-Gram, in one batch."""
    weights, prompts = random_weights(3, BF16, **SHAPE), [random_row(5), random_row(19)]
    sampler = Sampler(**params)
    plain = []
    level = make_level(run, weights)
    for slot, prompt in enumerate(prompts):
        level.rows.write(slot, prompt)
        for n in range(len(prompt), len(prompt) + 14):
            level.review([ReviewItem(slot, n, n, sampler)], 1.0)
        plain.append(level.rows.read(slot, 0, len(prompt) + 14))

    level = make_level(run, weights)
    drafts = StatisticalLevel(level.backend, level.rows)
    lengths = [len(p) for p in prompts]
    for slot, prompt in enumerate(prompts):
        level.rows.write(slot, prompt)
    while min(n - len(p) for n, p in zip(lengths, prompts, strict=True)) < 14:
        counts = drafts.propose([Proposal(slot, n, 4) for slot, n in enumerate(lengths)])
        both = zip(lengths, counts, strict=True)
        items = [ReviewItem(slot, n, n + k, sampler) for slot, (n, k) in enumerate(both)]
        for slot, verdict in enumerate(level.review(items, 1.0)):
            lengths[slot] += verdict.num_accepted + 1
            level.truncate(slot, lengths[slot] - 1)
    for slot, expected in enumerate(plain):
        assert level.rows.read(slot, 0, len(expected)) == expected


def test_a_tree_is_reviewed_and_committed(run: Launcher) -> None:
    """The program's tree arguments: the logits of a node are those of its path as a row."""
    weights = random_weights(4, BF16, **SHAPE)
    level, row = make_level(run, weights), random_row(17)
    tokens, parents = random_row(6), [-1, 0, 0, 1, 2, 4]
    level.rows.write(0, row)
    level.score(0, 16, 0)
    level.pages.reserve(0, 23, level.storage.copy_page)
    level._program.run([0], [16], [7], [7], False, [(tokens, parents)])
    ours = level._recorder.read(level._logits)
    for node in range(6):
        path, at = [tokens[node]], parents[node]
        while at >= 0:
            path.insert(0, tokens[at])
            at = parents[at]
        level.truncate(0, 0)
        level.rows.write(1, row + path)
        level.truncate(1, 0)
        expected = level.score(1, 17 + len(path), 1)
        assert_same_bits(ours[node + 1 : node + 2], expected, node)


def test_a_review_takes_the_path_of_a_tree(run: Launcher) -> None:
    """Beside a chain: accepted nodes become the row's tokens, their keys move, and the row goes on
    as if it had been decoded one by one."""
    weights, rows = random_weights(6, BF16, **SHAPE), [random_row(9), random_row(12)]
    sampler = Sampler(temperature=0.7, seed=3, presence_penalty=0.5)
    plain = make_level(run, weights)
    expected = []
    for slot, row in enumerate(rows):
        plain.rows.write(slot, row)
        for n in range(len(row), len(row) + 6):
            plain.review([ReviewItem(slot, n, n, sampler)], 1.0)
        expected.append(plain.rows.read(slot, 0, len(row) + 6))
    level, truth = make_level(run, weights), expected[0][9:]
    other = [(t + 1) % 66 for t in truth]
    drafted = [other[0], truth[0], truth[1], other[1], truth[2], other[3]]
    tree = TokenTree(drafted, [-1, -1, 1, 0, 2, 4], [1.0] * 6, [1] * 6)
    level.rows.write(0, rows[0])
    level.rows.write(1, expected[1][:14])
    items = [ReviewItem(0, 9, 9, sampler, tree=tree), ReviewItem(1, 12, 14, sampler)]
    first, second = level.review(items, 1.0)
    assert (first.num_accepted, first.token, list(first.path)) == (3, truth[3], [1, 2, 4])
    assert (second.num_accepted, second.token) == (2, expected[1][14])
    level.truncate(0, 12)
    assert level.rows.read(0, 0, 13) == expected[0][:13]
    [verdict] = level.review([ReviewItem(0, 13, 13, sampler)], 1.0)
    assert verdict.token == truth[4]


def test_a_draft_level_leaves_probabilities(run: Launcher) -> None:
    """Lenience between drafting levels needs the probability of every token that stays."""
    level, row = make_level(run, random_weights(5, BF16, **SHAPE)), random_row(6)
    level.rows.write(0, row)
    [verdict] = level.review([ReviewItem(0, 6, 6, Sampler(temperature=0.0))], 1.0)
    level.truncate(0, 0)
    level.rows.write(1, row)
    probs = level.score(1, 6, 1)[:, :66].double().softmax(-1)[0]
    assert verdict.token == int(probs.argmax())
    assert float(level.rows.draft_probs[0, 6]) == pytest.approx(float(probs.max()), rel=1e-4)


def test_refusals() -> None:
    with pytest.raises(RequestError, match=r"Tesla V100 has compute capability 7\.0.* need 8\.0"):
        check_capability("Tesla V100", (7, 0))
    check_capability("A100", (8, 0))


def test_the_engine_says_why_there_is_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RequestError, match=r"device 'cuda': .*device='cpu'"):
        Engine.load(tmp_path, device="cuda")
    with pytest.raises(RequestError, match="got 'float32' for device 'cuda'"):
        Engine.load(tmp_path, device="cuda", dtype="float32")


def test_the_engine_decodes(run: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole engine on the kernels: with drafts it emits the tokens of plain decoding."""
    random_llama(
        tmp_path,
        3,
        head_dim=8,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=40,
        vocab_size=97,
    )
    monkeypatch.setattr(loading, "make_backend", lambda options: CudaBackend("cuda", 1, run))
    monkeypatch.setattr(loading, "_memory", lambda place: 1 << 26)
    prompts = [random_row(9), random_row(14), random_row(3)]
    outputs = []
    cases: list[tuple[Any, list[str]]] = [
        (PlainDecoding(), []),
        ("fixed", []),
        (FixedCascade([[3, 2], [0, 0]], min_confidence=0.02), ["self:1"]),
    ]
    for policy, drafts in cases:
        engine = Engine.load(
            tmp_path, drafts, device="cuda", dtype="bfloat16", max_rows=2, policy=policy
        )
        params = SamplingParams(max_tokens=10, temperature=0.7, seed=4, ignore_eos=True)
        outputs.append([g.token_ids for g in engine.generate(prompts, params)])
    assert outputs[0] == outputs[1] == outputs[2]
    assert [len(ids) for ids in outputs[0]] == [10] * 3
