"""Loading keeps one copy of the weights: peak memory grows by at most 1.1 times what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cascade_engine.demo.family import llama_family
from cascade_engine.models.config import load_config

SCRIPT = """
import sys
from cascade_engine import Engine
import torch

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

# Another model first: pages of the libraries count as nobody's weights.
Engine.load(sys.argv[3], dtype=sys.argv[2], max_rows=1, threads=1)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts from here
before = status("VmRSS")
engine = Engine.load(sys.argv[1], dtype=sys.argv[2], max_rows=1, threads=1)
print(status("VmHWM") - before, engine.report.weight_bytes)
"""


@pytest.mark.parametrize("tied", [True, False])
def test_peak_memory_while_loading(tmp_path: Path, tied: bool) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = load_config(tmp_path).tensor_shapes()
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            name: (torch.rand(shape, generator=generator) - 0.5).bfloat16()
            for name, shape in shapes.items()
        },
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    # bfloat16 may be compressed, which takes a copy of one matrix while it is loaded.
    for dtype, factor in (("bfloat16", 0.75), ("float32", 2), ("int8", 0.5)):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path, dtype, llama_family().target],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        growth, weights = map(int, run.stdout.split())
        assert weights >= 200e6 * factor
        assert growth <= 1.1 * weights, f"{dtype}: peak {growth / weights:.3f} x the weights"
        print(f"tied={tied} {dtype}: peak growth {growth / weights:.3f} x {weights / 1e6:.0f} MB")
