"""Models whose heads the native attention lacks, with Triton chosen for the rest as well: Triton's
kernels (under TRITON_INTERPRET=1) amid emulated ones, or all of it on a GPU."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cascade_engine import _C, Engine, FixedCascade, PlainDecoding, SamplingParams
from cascade_engine.engine import loading
from cascade_engine.engine.loading import load_model
from cascade_engine.models import llama, t5
from cascade_engine.ops import CpuBackend, CudaBackend, ReferenceOps
from cascade_engine.ops.launch import Launcher
from tests.cuda import emulation
from tests.cuda.support import F16, RecordingLauncher, assert_same_bits
from tests.cuda.test_backend import make_level, random_row
from tests.cuda.test_t5 import START, VOCAB, Level, tokens
from tests.models.support import random_llama, random_t5
from tests.ops.support import BF16, random_weights


class Recording(RecordingLauncher):
    """Triton's launches are kept with what they were given as well."""

    def triton(self, name: str, **arguments: Any) -> None:
        if self._recording is None:
            self._send()
            super().triton(name, **arguments)
            return
        run: Callable[..., None] = super().triton
        self._recording.append((lambda stream, **values: run(name, **values), [], arguments))


def launcher() -> Launcher:
    if torch.cuda.is_available():
        return Launcher(_C.cuda, torch.device("cuda"))
    return Recording(Launcher(emulation.built(), torch.device("cpu")))


def check_model(run: Launcher) -> None:
    """Logits against the reference, reviews and a node of a tree against single steps."""
    shape = {"hidden_size": 40, "intermediate_size": 52, "vocab_size": 66, "head_dim": 20}
    weights = dataclasses.replace(random_weights(1, BF16, **shape), dtype=F16)
    level, row = make_level(run, weights), random_row(70)
    level.rows.write(0, row)
    single = torch.cat([level.score(0, n, 1) for n in (68, 69, 70)])
    level.truncate(0, 67)
    assert_same_bits(level.score(0, 70, 3), single)
    reference, config = ReferenceOps(row, wanted=3), weights.config
    caches = reference.caches(config.num_layers, config.num_kv_heads, config.head_dim)
    exact = llama.forward(reference, weights, caches)
    assert (single.double() - exact).abs().max() < 0.01 * exact.abs().max()
    level.truncate(0, 67)
    level.pages.reserve(0, 72, level.storage.copy_page)
    wrong = [(t + 1) % 66 for t in row]
    nodes = [row[68], wrong[68], row[69], wrong[69]]
    level._program.run([0], [67], [5], [5], False, [(nodes, [-1, -1, 0, 1])])
    ours = level._recorder.read(level._logits)
    assert_same_bits(ours[[0, 1, 3]], single[:3], "a tree")


def check_narrow_heads(run: Launcher, directory: Path) -> None:
    """All heads together are no multiple of 8: queries that a product has rounded, for
    cross-attention, lie as attention reads them."""
    sizes = {"d_model": 24, "d_ff": 32, "d_kv": 6, "num_heads": 2, "vocab_size": VOCAB}
    random_t5(directory, 1, num_layers=1, num_decoder_layers=1, **sizes)
    source, decoded = tokens(20, 1), tokens(5, 2)
    ours = Level(run, directory, F16).score(1, source, decoded, 3)
    weights = load_model(directory, CpuBackend(1), torch.float32)
    assert isinstance(weights, t5.T5Weights)
    reference = ReferenceOps(source, source=len(source))
    caches = list(reference.caches(1, 2, 6))
    t5.encode(reference, weights, caches)
    behind = ReferenceOps([START, *decoded], len(source), 3, source=len(source))
    exact = t5.decode(behind, weights, caches)
    assert (ours.double() - exact).abs().max() < 0.01 * exact.abs().max()


def check_engine(run: Launcher, directory: Path) -> None:
    """The cascade changes no token, with graphs."""
    loading._memory = lambda place: 1 << 26
    prompts = [random_row(9), random_row(14)]
    sampling = SamplingParams(max_tokens=4, temperature=0.7, seed=4, ignore_eos=True)
    expected = None
    for policy in (PlainDecoding(), FixedCascade([[4]], tree=8)):
        graphs = expected is not None
        loading.make_backend = lambda options, g=graphs: CudaBackend("cuda", 1, run, graphs=g)
        engine = Engine.load(
            directory, device="cuda", dtype="bfloat16", max_context=96, policy=policy
        )
        found = [answer.token_ids for answer in engine.generate(prompts, sampling)]
        expected = expected or found
        assert found == expected
        engine.check_integrity()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    run = launcher()
    run.choices = {"rms_norm": "triton", "rope_store": "triton", "swiglu": "triton"}
    check_model(run)
    with tempfile.TemporaryDirectory() as folder:
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
        sizes = {"hidden_size": 24, "intermediate_size": 32, "vocab_size": 97}
        random_llama(Path(folder, "llama"), 3, head_dim=132, **heads, **sizes)
        check_engine(run, Path(folder, "llama"))
        check_narrow_heads(run, Path(folder, "narrow"))
        sizes = {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_heads": 2, "vocab_size": 97}
        random_t5(Path(folder, "t5"), 1, num_layers=1, num_decoder_layers=1, **sizes)
        check_engine(run, Path(folder, "t5"))


if __name__ == "__main__":
    main()
