"""Train one demo model: `python -m cascade_engine.demo.train --model llama-target`.

Files in `--out` (default build/demo/MODEL): `checkpoint.pt` (resumable with --resume), `log.jsonl`
(one JSON object a report), `final/` (Hugging Face layout, float32). A draft is distilled when
`--teacher` names the target's `final/` folder: loss = (1 - share) * cross entropy + share *
KL(target || draft), and `--texts` mixes in documents that the target itself wrote (distill.py), as
DistillSpec does (Zhou et al., arXiv 2310.08461). A resumed run may be given fewer or more `--steps`.
LLaMA models learn fastest on short rows but know only the positions they were trained on:
`--until STEP` ends a first phase, `--resume --row-length 1024` goes on with long rows to the end.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor

from cascade_engine.training.batches import Batch
from cascade_engine.training.loop import Loop, Schedule, suit_rows
from cascade_engine.training.losses import loss_of

from .batches import packed_batches, pair_batches
from .corpus import Document, distinct_documents, documents
from .distill import read_texts
from .presets import PRESETS, Preset, build_model, load_model
from .scoring import greedy_answers, score
from .tokenizer import load_tokenizer

VALIDATION_BATCHES = 8


class Trainer:
    """Owns one model, its optimizers and its folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.preset: Preset = PRESETS[args.model]
        self.out: Path = args.out or Path("build/demo") / args.model
        self.tokenizer: SentencePieceProcessor = load_tokenizer(args.tokenizer)
        torch.manual_seed(args.seed)
        self.model: Any = build_model(args.model)
        self.loop = Loop(self.model, self.out, self._schedule(), args.model)
        self.teacher: Any = None
        if args.teacher is not None:
            self.teacher = load_model(args.teacher, self.preset.family, torch.float32)
        if self.preset.family == "llama":
            for model in filter(None, (self.model, self.teacher)):
                suit_rows(model, args.row_length)
        if args.resume and self.loop.checkpoint.exists():
            self.loop.load()
        elif args.init is not None:
            state = torch.load(args.init, weights_only=True)
            self.model.load_state_dict(state["model"])

    def _schedule(self) -> Schedule:
        preset, args = self.preset, self.args
        return Schedule(
            args.steps or preset.steps,
            preset.matrix_lr,
            preset.other_lr,
            preset.parts,
            args.report_every,
            args.save_seconds,
        )

    def batches(self, split: str, seed: int) -> Iterator[Batch]:
        """Batches of a split; of the train split, a share of the documents comes from `--texts`."""
        stream: Iterator[Document] = documents(split, seed)  # type: ignore[arg-type]
        if split == "train" and self.args.texts is not None:
            stream = mixed(stream, read_texts(self.args.texts), self.args.texts_share, seed)
        if self.preset.family == "t5":
            return pair_batches(stream, self.tokenizer, self.preset.batch_tokens)
        rows = self.preset.batch_tokens // self.args.row_length
        return packed_batches(stream, self.tokenizer, rows, self.args.row_length)

    def train(self) -> None:
        """Run to the last step, then save `final/`; SIGTERM saves a checkpoint and stops."""
        stream = self.batches("train", seed=self.args.seed * 1_000_003 + self.loop.step)

        def loss(batch: Batch) -> torch.Tensor:
            return loss_of(self.model, batch, self.teacher, self.args.teacher_share)

        if self.loop.run(stream, loss, self.report, self.args.until):
            self.model.save_pretrained(self.out / "final")

    def report(self, train_loss: float) -> None:
        """Append validation loss and greedy scores to log.jsonl."""
        self.model.eval()
        stream = self.batches("validation", seed=0)
        with torch.inference_mode():
            losses = [loss_of(self.model, next(stream)).item() for _ in range(VALIDATION_BATCHES)]
        items = distinct_documents("validation", "arithmetic", self.args.report_count)
        answers = greedy_answers(
            self.model, self.tokenizer, [d.prompt for d in items], max_new_tokens=200
        )
        self.model.train()
        record = {
            **self.loop.progress(),
            "row_length": self.args.row_length,
            "distilled": self.teacher is not None,
            "train_loss": round(train_loss, 4),
            "validation_loss": round(sum(losses) / len(losses), 4),
            "arithmetic": score(items, self.tokenizer, answers),
        }
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")


def mixed(
    stream: Iterator[Document], texts: list[Document], share: float, seed: int
) -> Iterator[Document]:
    """The stream with a share of documents replaced by random ones of `texts`."""
    rng = random.Random(seed)
    while True:
        yield rng.choice(texts) if rng.random() < share else next(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description="train one demo model")
    parser.add_argument("--model", choices=sorted(PRESETS), required=True)
    parser.add_argument("--out", type=Path, help="default build/demo/MODEL")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo/tokenizer.model"))
    parser.add_argument(
        "--resume", action="store_true", help="go on from checkpoint.pt when it is there"
    )
    parser.add_argument("--init", type=Path, help="checkpoint.pt whose weights start a new run")
    parser.add_argument("--steps", type=int, help="optimizer steps of the whole run")
    parser.add_argument("--until", type=int, help="stop after this step, with a checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row-length", type=int, default=288, help="tokens in a packed row")
    parser.add_argument("--teacher", type=Path, help="folder of the target to distil from")
    parser.add_argument("--teacher-share", type=float, default=0.8)
    parser.add_argument("--texts", type=Path, help="documents the target wrote (distill.py)")
    parser.add_argument("--texts-share", type=float, default=0.5)
    parser.add_argument("--report-every", type=int, default=250)
    parser.add_argument("--report-count", type=int, default=64)
    parser.add_argument("--save-seconds", type=float, default=180.0)
    args = parser.parse_args()
    if args.texts is not None and not args.texts.exists():
        parser.error(
            f"--texts {args.texts} does not exist: run python -m cascade_engine.demo.distill first"
        )
    Trainer(args).train()


if __name__ == "__main__":
    main()
