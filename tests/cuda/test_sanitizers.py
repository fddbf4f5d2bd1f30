"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: accesses outside tensors and
shared memory that happen to change no result."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import emulation

TESTS = [
    "test_linear.py::test_product",
    "test_linear.py::test_fused_gates",
    "test_linear.py::test_splits_of_k_are_merged_in_order",
    "test_attention.py::test_chains",
    "test_attention.py::test_holes_in_the_batch",
    "test_attention.py::test_trees",
    "test_attention.py::test_cross_attention",
    "test_attention.py::test_a_relative_bias_and_no_scale",
    "test_forward_ops.py",
    "test_drafting.py",
    "test_draft_trees.py",
    "test_rejection_kernel.py::test_reviews_are_the_oracles",
    "test_rejection_kernel.py::test_borders",
    "test_sampling.py::test_trees",
    "test_sampling.py::test_reviews_are_the_oracles",
    "test_backend.py::test_a_tree_is_reviewed_and_committed",
]


def runtime(name: str) -> str | None:
    """A sanitizer's library, which must be there before Python's own allocations."""
    command = emulation.compiler()
    assert command is not None
    found = subprocess.run(
        [command[-1], f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if os.path.isabs(found) else None


def run_with(module: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    if None in libraries:
        pytest.skip("the compiler has no sanitizer libraries")
    environment = {
        **os.environ,
        "CE_EMULATION_MODULE": str(module),
        "LD_PRELOAD": ":".join(filter(None, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "OMP_NUM_THREADS": "1",
    }
    folder = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not gpu",
        "-p",
        "no:cacheprovider",
        "--capture=sys",  # a report goes to the process's own stderr
    ]
    command += [str(folder / test) for test in tests]
    return subprocess.run(
        command, env=environment, cwd=emulation.ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_kernels_are_clean() -> None:
    if emulation.compiler() is None:
        pytest.skip("the emulation of the CUDA kernels needs g++")
    [module] = emulation.build_all([{}], sanitize="address,undefined")
    done = run_with(module, TESTS)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.mark.slow
def test_a_read_behind_a_tensor_is_found() -> None:
    """The sanitizer sees tensors: a norm that reads one column too many changes nothing else."""
    if emulation.compiler() is None:
        pytest.skip("the emulation of the CUDA kernels needs g++")
    text = (emulation.CSRC / "cuda" / "norm.cu").read_text()
    old = "args.weight[c]"
    assert old in text
    bad = text.replace(old, "args.weight[c] + 0.0f * args.weight[args.cols + c % 1]")
    variant = {"norm.cu": bad}
    [module] = emulation.build_all([variant], sanitize="address,undefined", warnings=False)
    done = run_with(module, ["test_forward_ops.py::test_rms_norm"])
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stdout + done.stderr
