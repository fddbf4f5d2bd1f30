"""Train one demo model: `python -m cascade_engine.demo.train --model llama-target`.

Files in `--out` (default build/demo/MODEL): `checkpoint.pt` (resumable with --resume), `log.jsonl`
(one JSON object a report), `final/` (Hugging Face layout, float32). A draft is distilled when
`--teacher` names the target's `final/` folder: loss = (1 - share) * cross entropy + share *
KL(target || draft), and `--texts` mixes in documents that the target itself wrote (distill.py), as
DistillSpec does (Zhou et al., arXiv 2310.08461). The learning rate is constant after a short warm-up
and falls linearly to 0 over the last part of the run, so a resumed run may be given fewer or more
`--steps`. LLaMA models learn fastest on short rows but know only the positions they were trained on:
`--until STEP` ends a first phase, `--resume --row-length 1024` goes on with long rows to the end.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm

from .batches import Batch, packed_batches, pair_batches
from .corpus import Document, distinct_documents, documents
from .distill import read_texts
from .presets import PRESETS, Preset, build_model, load_model
from .scoring import greedy_answers, score
from .tokenizer import load_tokenizer

WARMUP_STEPS = 100
DECAY_SHARE = 0.35
WEIGHT_DECAY = 0.05
VALIDATION_BATCHES = 8


def forward_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits [rows, length, vocab] where position t predicts batch.tokens[:, t].

    A LLaMA model's first position has no prediction and its weight is 0, so its logits are a copy.
    """
    if batch.inputs is not None:
        mask = (batch.inputs != model.config.pad_token_id).long()
        labels_in = batch.tokens.roll(1, dims=1)
        labels_in[:, 0] = model.config.decoder_start_token_id
        return model(
            input_ids=batch.inputs,
            attention_mask=mask,
            decoder_input_ids=labels_in,
            use_cache=False,
        ).logits
    logits = model(input_ids=batch.tokens, use_cache=False).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


def loss_of(
    model: Any, batch: Batch, teacher: Any = None, teacher_share: float = 0.0
) -> torch.Tensor:
    """Mean weighted loss per token in nats; with a teacher, mixed with the forward KL from it."""
    keep = batch.weights > 0
    weights = batch.weights[keep]
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward_logits(model, batch)[keep]
    log_probs = functional.log_softmax(logits.float(), dim=-1)
    losses = functional.nll_loss(log_probs, batch.tokens[keep], reduction="none")
    if teacher is not None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            target = functional.log_softmax(forward_logits(teacher, batch)[keep].float(), dim=-1)
        divergence = functional.kl_div(log_probs, target, reduction="none", log_target=True).sum(-1)
        losses = (1 - teacher_share) * losses + teacher_share * divergence
    return (losses * weights).sum() / weights.sum()


class Trainer:
    """Owns one model, its optimizers and its folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.preset: Preset = PRESETS[args.model]
        self.steps: int = args.steps or self.preset.steps
        self.out: Path = args.out or Path("build/demo") / args.model
        self.out.mkdir(parents=True, exist_ok=True)
        self.tokenizer: SentencePieceProcessor = load_tokenizer(args.tokenizer)
        torch.manual_seed(args.seed)
        self.model: Any = build_model(args.model)
        self.optimizers = self._optimizers()
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.teacher: Any = None
        if args.teacher is not None:
            self.teacher = load_model(args.teacher, self.preset.family, torch.float32)
        if self.preset.family == "llama" and args.row_length <= 512:
            for model in filter(None, (self.model, self.teacher)):
                model.set_attn_implementation("eager")  # on CPUs faster than sdpa for short rows
        if args.resume and (self.out / "checkpoint.pt").exists():
            self._load_checkpoint(self.out / "checkpoint.pt")
        elif args.init is not None:
            state = torch.load(args.init, weights_only=True)
            self.model.load_state_dict(state["model"])

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for matrices inside the layers, AdamW for the rest."""
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            inner = parameter.ndim == 2 and not any(
                part in name for part in ("embed", "shared", "lm_head", "relative_attention_bias")
            )
            (matrices if inner else others).append(parameter)
        muon = torch.optim.Muon(
            matrices,
            lr=self.preset.matrix_lr,
            momentum=0.95,
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        )
        adam = torch.optim.AdamW(
            others, lr=self.preset.other_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
        )
        for optimizer in (muon, adam):
            for group in optimizer.param_groups:
                group["base_lr"] = group["lr"]
        return [muon, adam]

    def batches(self, split: str, seed: int) -> Iterator[Batch]:
        """Batches of a split; of the train split, a share of the documents comes from `--texts`."""
        stream: Iterator[Document] = documents(split, seed)  # type: ignore[arg-type]
        if split == "train" and self.args.texts is not None:
            stream = mixed(stream, read_texts(self.args.texts), self.args.texts_share, seed)
        if self.preset.family == "t5":
            return pair_batches(stream, self.tokenizer, self.preset.batch_tokens)
        rows = self.preset.batch_tokens // self.args.row_length
        return packed_batches(stream, self.tokenizer, rows, self.args.row_length)

    def rate(self) -> float:
        """The learning-rate factor of the current step, 0..1."""
        decay = int(DECAY_SHARE * self.steps)
        return min(1.0, (self.step + 1) / WARMUP_STEPS, max(0.0, (self.steps - self.step) / decay))

    def train(self) -> None:
        """Run to the last step, then save `final/`; SIGTERM saves a checkpoint and stops."""
        stopping: list[int] = []
        last = min(self.steps, self.args.until or self.steps)
        signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
        stream = self.batches("train", seed=self.args.seed * 1_000_003 + self.step)
        bar = tqdm(total=self.steps, initial=self.step, desc=self.args.model, mininterval=10.0)
        last_save, running = time.monotonic(), 0.0
        while self.step < last and not stopping:
            started = time.monotonic()
            loss = 0.0
            for batch in islice(stream, self.preset.parts):
                part = loss_of(self.model, batch, self.teacher, self.args.teacher_share)
                (part / self.preset.parts).backward()
                loss += part.item() / self.preset.parts
                self.tokens += int((batch.weights > 0).sum())
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            factor = self.rate()
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                optimizer.step()
                optimizer.zero_grad()
            self.step += 1
            running = loss if not running else 0.98 * running + 0.02 * loss
            self.seconds += time.monotonic() - started
            bar.update()
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
            if self.step % self.args.report_every == 0 or self.step == self.steps:
                self.report(running)
            if time.monotonic() - last_save > self.args.save_seconds:
                self.save_checkpoint()
                last_save = time.monotonic()
        bar.close()
        self.save_checkpoint()
        if self.step == self.steps:
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
            "step": self.step,
            "steps": self.steps,
            "row_length": self.args.row_length,
            "distilled": self.teacher is not None,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9)),
            "train_loss": round(train_loss, 4),
            "validation_loss": round(sum(losses) / len(losses), 4),
            "arithmetic": score(items, self.tokenizer, answers),
        }
        with (self.out / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")

    def save_checkpoint(self) -> None:
        """Write checkpoint.pt through a temporary file, so that a stop never leaves half a file."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": [self.step, self.seconds, self.tokens],
        }
        torch.save(state, self.out / "checkpoint.tmp")
        (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

    def _load_checkpoint(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.tokens = state["progress"]


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
