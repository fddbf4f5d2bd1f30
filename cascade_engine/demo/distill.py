"""Documents whose answers a target wrote itself, for distilling its drafts.

`python -m cascade_engine.demo.distill --target build/demo/llama-target/final --out FILE` answers
train-split prompts greedily and writes one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from .corpus import Document, documents
from .presets import load_model
from .scoring import greedy_answers
from .tokenizer import EOS_ID, load_tokenizer

_GROUP = 2048


def read_texts(path: Path) -> list[Document]:
    """Documents written by `write_texts`."""
    with path.open() as lines:
        return [Document(**json.loads(line)) for line in lines]


def write_texts(
    family: str, target: Path, tokenizer_path: Path, out: Path, count: int, seed: int
) -> int:
    """Answer `count` train prompts; leave out answers that never stop; return how many are kept."""
    tokenizer = load_tokenizer(tokenizer_path)
    model = load_model(target, family, torch.bfloat16)
    stream, kept = documents("train", seed), 0
    with out.open("w") as lines:
        for start in tqdm(range(0, count, _GROUP), desc="documents"):
            group = list(islice(stream, min(_GROUP, count - start)))
            answers = greedy_answers(model, tokenizer, [d.prompt for d in group], batch_size=256)
            for document, ids in zip(group, answers, strict=True):
                if not ids or ids[-1] != EOS_ID:
                    continue
                written = replace(document, answer=" " + tokenizer.decode(ids[:-1]))
                lines.write(json.dumps(asdict(written)) + "\n")
                kept += 1
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description="let a target answer train prompts")
    parser.add_argument("--family", choices=("llama", "t5"), default="llama")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo/tokenizer.model"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    kept = write_texts(args.family, args.target, args.tokenizer, args.out, args.count, args.seed)
    print(f"{args.out}: {kept} of {args.count} documents")


if __name__ == "__main__":
    main()
