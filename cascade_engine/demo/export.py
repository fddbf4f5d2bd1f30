"""Write trained models into the package and fill in MODEL_CARD.md.

`python -m cascade_engine.demo.export --model llama-target` takes build/demo/llama-target/final and writes
bfloat16 model.safetensors, config.json, generation_config.json and tokenizer.model to
cascade_engine/demo/llama-target. `--card` alone only rewrites the card from the logs and score files.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from cascade_engine.training.export import save_as

from .model_card import write_card
from .presets import MAX_POSITIONS, PRESETS, load_model

SIZE_LIMIT = 30 * 2**20


def export_model(name: str, trained: Path, tokenizer: Path, out: Path) -> None:
    """Convert one model to bfloat16 in `out`. Raises FileNotFoundError when it is not trained yet."""
    final = trained / name / "final"
    if not (final / "config.json").exists():
        raise FileNotFoundError(
            f"{final} is missing: run python -m cascade_engine.demo.train --model {name}"
        )
    model = load_model(final, PRESETS[name].family, torch.bfloat16)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    save_as(model, folder, torch.bfloat16)
    shutil.copyfile(tokenizer, folder / "tokenizer.model")
    is_llama = PRESETS[name].family == "llama"
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": is_llama,
        "add_eos_token": not is_llama,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "model_max_length": MAX_POSITIONS,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)


def embedded_bytes(folder: Path) -> int:
    """Size of all files in the model folders. Raises ValueError above SIZE_LIMIT."""
    files = [f for name in PRESETS for f in (folder / name).glob("*")]
    total = sum(f.stat().st_size for f in files)
    if total > SIZE_LIMIT:
        raise ValueError(f"embedded models must take at most {SIZE_LIMIT} bytes, got {total}")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="export trained demo models into the package")
    parser.add_argument("--model", choices=sorted(PRESETS), action="append", default=[])
    parser.add_argument("--trained", type=Path, default=Path("build/demo"))
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo/tokenizer.model"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--card", action="store_true", help="rewrite MODEL_CARD.md")
    args = parser.parse_args()
    for name in args.model:
        export_model(name, args.trained, args.tokenizer, args.out)
    print(f"embedded models: {embedded_bytes(args.out)} bytes")
    if args.card or args.model:
        write_card(args.out, args.trained)


if __name__ == "__main__":
    main()
