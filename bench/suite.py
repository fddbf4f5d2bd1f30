"""The benchmarks of the whole suite: by the name of their results, how each is run."""

from __future__ import annotations

import importlib.util
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

DATA = os.environ.get("CASCADE_DATA") or "../shared/data"
SPEC_BENCH = f"{DATA}/transcripts/spec_bench_vicuna7b_dev.jsonl"
ALPACA = f"{DATA}/transcripts/alpaca_llama2_7b_chat_dev.jsonl"
REPLAY = "--drafter prompt-lookup max-gram max-gram+bigram chain:10 tree:32 tree:64"
PEERS, ALL_PEERS = "--peers PEERS", "hf,llamacpp"
"""transformers, and llama.cpp where it is installed."""


class Job(NamedTuple):
    """One benchmark."""

    name: str
    """Of its results: DATE-NAME.json."""
    module: str
    arguments: str = ""
    quick: str | None = None
    """Further arguments of a quick run; None: it is not part of one."""
    needs: str = ""
    """A file without which there is nothing to measure."""
    gigabytes: float = 0.0
    """Memory without which it is not started."""

    def command(self, quick: bool = False) -> list[str]:
        """Words behind `python`."""
        words = shlex.split(f"{self.arguments} {(self.quick or '') if quick else ''}")
        return ["-m", self.module, *(peers() if word == "PEERS" else word for word in words)]

    def missing(self) -> str:
        """Why it cannot run here; empty where it can."""
        if self.needs and not Path(self.needs).exists():
            return f"{self.needs} is not there; set CASCADE_DATA"
        free = available_bytes() / 1e9
        if free < self.gigabytes:
            return f"it takes {self.gigabytes:.0f} GB of memory, {free:.0f} are free"
        return ""


JOBS: Sequence[Job] = (
    Job("sample", "bench.sample", "", ""),
    Job("decode-110m-bf16", "bench.decode", f"--shape 110m --dtype bf16 {PEERS}", "--rounds 5"),
    Job("decode-15m-bf16", "bench.decode", f"--shape 15m --dtype bf16 {PEERS}", "--rounds 12"),
    Job("decode-110m-f32", "bench.decode", "--shape 110m --dtype f32", "--rounds 5"),
    Job("decode-110m-int8", "bench.decode", f"--shape 110m --dtype int8 {PEERS}"),
    Job(
        "e2e-demo-peers", "bench.e2e", "--peers hf,hf-assisted,llamacpp",
        "--rows 1,16 --questions 16 --seconds 10",
    ),
    Job("t5-demo-bf16", "bench.t5", "--dtype bf16", "--questions 16"),
    Job("t5-demo-f32", "bench.t5", "--dtype f32"),
    Job("swi", "bench.swi", "", "--turns 100"),
    Job("ablations", "bench.ablations", "--plot docs/ablations.svg", ""),
    Job(
        "replay-spec-bench-cold", "bench.replay", REPLAY, "",
        SPEC_BENCH,
    ),
    Job("replay-alpaca-cold", "bench.replay", f"{REPLAY} --transcripts {ALPACA}", None, ALPACA),
    Job(
        "replayed-110m-bf16", "bench.replay_level", "--shape 110m --turns 16",
        "--max-new-tokens 96", SPEC_BENCH,
    ),
    Job(
        "replayed-7b-int8", "bench.replay_level",
        "--shape 7b --dtype int8 --turns 2 --max-new-tokens 32 --context 512", None, SPEC_BENCH, 9,
    ),
    Job("batch-110m-bf16", "bench.batch", "--shape 110m"),
    Job("demo-evaluate", "cascade_engine.demo.evaluate"),
)  # fmt: skip
"""In the order in which they run."""


def available_bytes() -> float:
    """Memory that a new process could take; infinite where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def peers() -> str:
    found = all(importlib.util.find_spec(name) for name in ("llama_cpp", "gguf"))
    return ALL_PEERS if found else "hf"


def default_command(name: str) -> str:
    """What makes results of this name, for reports that do not say so themselves; the same wherever
    it is asked."""
    job = next((job for job in JOBS if job.name == name), None)
    if job is None:
        return name
    return f"python -m {job.module} {job.arguments}".strip().replace("PEERS", ALL_PEERS)
