"""The kernels compile for the GPUs they are meant for, within their budget of registers and shared
memory, without spilling. The budget is tests/cuda/budget.json; `python -m tests.cuda.test_budget`
writes it anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cuda.emulation import CSRC, JOBS, KERNELS

BUDGET = Path(__file__).with_name("budget.json")
ARCHITECTURES = {"sm_80": 163 << 10, "sm_90": 227 << 10}
"""With the shared memory, static and dynamic, that a block may have."""
FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-cubin", "-Xptxas=-v", f"-I{CSRC}"]
PIECES = {"I5uint4E": "uint4", "IjE": "uint32"}
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")

Usage = dict[str, int]


def compile_kernels(source: str, architecture: str) -> dict[str, Usage]:
    """Registers, spilled bytes, static and dynamic shared memory of each kernel of a file. That
    launches ask for what kernels use is checked by the emulation."""
    assert NVCC is not None
    with tempfile.TemporaryDirectory() as folder:
        command = [NVCC, *FLAGS, f"-I{CSRC / 'include'}", f"-arch={architecture}"]
        command += [str(CSRC / "cuda" / source), "-o", f"{folder}/out.cubin"]
        command += ["--keep", "--keep-dir", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{source} for {architecture}:\n{done.stderr}"
        [ptx] = Path(folder).glob("*.ptx")
        dynamic = dynamic_memory(ptx.read_text())
    found: dict[str, Usage] = {}
    for part in done.stderr.split("Compiling entry function '")[1:]:
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert spills is not None
        assert registers is not None
        symbol = part.split("'")[0]
        found[kernel_name(symbol)] = {
            "registers": int(registers[1]),
            "spilled": int(spills[1]) + int(spills[2]),
            "shared": int(shared[1]) if shared else 0,
            "dynamic": dynamic[symbol],
        }
    return found


def dynamic_memory(ptx: str) -> dict[str, int]:
    """By symbol, from what shared_memory() of csrc/cuda/intrinsics.h leaves in the PTX."""
    found = {}
    for part in ptx.split(".entry ")[1:]:
        sizes = re.findall(r"// dynamic shared memory: (\d+)", part)
        found[part.split("(")[0].strip()] = max(map(int, sizes), default=0)
    return found


def kernel_name(symbol: str) -> str:
    """`linear_kernel<bf16, 4>` of a mangled name, without a demangler."""
    name = re.search(r"\d+(\w+?_kernel)", symbol)
    assert name is not None, symbol
    plain = re.sub(r"^.*\d", "", name[1])
    arguments = ["bf16" for _ in re.findall(r"4bf16", symbol)[:1]]
    arguments += ["f16" for _ in re.findall(r"(?<!b)(?:3f16|f16E)", symbol)[:1] if not arguments]
    arguments += re.findall(r"L[ib](\d+)E", symbol)
    arguments += [name for part, name in PIECES.items() if part in symbol]
    return f"{plain}<{', '.join(arguments)}>" if arguments else plain


def measure() -> dict[str, dict[str, Usage]]:
    """By architecture and kernel."""
    jobs = [(source, a) for a in ARCHITECTURES for source in KERNELS]
    with ThreadPoolExecutor(JOBS) as pool:
        parts = list(pool.map(lambda job: compile_kernels(*job), jobs))
    found: dict[str, dict[str, Usage]] = {a: {} for a in ARCHITECTURES}
    for (_, architecture), part in zip(jobs, parts, strict=True):
        assert not found[architecture].keys() & part.keys()
        found[architecture] |= part
    return found


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_kernels_stay_within_their_budget() -> None:
    budget, found = json.loads(BUDGET.read_text()), measure()
    for architecture, limit in ARCHITECTURES.items():
        assert found[architecture].keys() == budget[architecture].keys(), "update budget.json"
        for kernel, usage in found[architecture].items():
            assert usage["spilled"] == 0, f"{kernel} spills on {architecture}"
            whole = usage["shared"] + usage["dynamic"]
            assert whole <= limit, f"{kernel}: {whole} bytes of shared memory on {architecture}"
            for resource, most in budget[architecture][kernel].items():
                assert usage[resource] <= most, f"{kernel} on {architecture}: {resource}"


if __name__ == "__main__":
    BUDGET.write_text(json.dumps(measure(), indent=1, sort_keys=True) + "\n")
