"""An optimization loop on the CPU: Muon and AdamW, a schedule that may be extended, checkpoints.

The learning rate is constant after a short warm-up and falls linearly to 0 over the last part of
the run, so that a resumed run may be given fewer or more steps.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cascade_engine.training.batches import Batch

WARMUP_STEPS = 100
DECAY_SHARE = 0.35
WEIGHT_DECAY = 0.05
EAGER_TOKENS = 512


@dataclass(frozen=True)
class Schedule:
    """`parts`: batches in one optimizer step; `matrix_lr`: Muon, for the matrices inside the
    layers; `other_lr`: AdamW, for embeddings, norms and the output layer."""

    steps: int
    matrix_lr: float
    other_lr: float
    parts: int = 1
    report_every: int = 250
    save_seconds: float = 180.0


def require_transformers() -> Any:
    """The transformers module. Raises ImportError that names the extra when it is absent."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "training needs transformers: pip install 'cascade_engine[train]'"
        ) from error
    return transformers


def suit_rows(model: Any, row_length: int) -> None:
    """The attention that is the faster one on CPUs for rows of this length."""
    if row_length <= EAGER_TOKENS:
        model.set_attn_implementation("eager")


class Loop:
    """Owns a model's optimizers and its `folder`/checkpoint.pt."""

    def __init__(self, model: Any, folder: Path, schedule: Schedule, name: str) -> None:
        self.model, self.folder, self.schedule, self.name = model, folder, schedule, name
        self.optimizers = _optimizers(model, schedule)
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def rate(self) -> float:
        """The learning-rate factor of the current step, 0..1."""
        steps = self.schedule.steps
        decay = max(1, int(DECAY_SHARE * steps))
        return min(1.0, (self.step + 1) / WARMUP_STEPS, max(0.0, (steps - self.step) / decay))

    def run(
        self,
        batches: Iterator[Batch],
        loss_of: Callable[[Batch], torch.Tensor],
        report: Callable[[float], None],
        until: int | None = None,
    ) -> bool:
        """Runs to the last step, or to step `until`; True if that was the last. SIGTERM saves a
        checkpoint and stops. `report(train loss)` is called every so many steps and at the end."""
        from tqdm import tqdm

        stopping: list[int] = []
        last = min(self.schedule.steps, until or self.schedule.steps)
        before = signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
        bar = tqdm(total=self.schedule.steps, initial=self.step, desc=self.name, mininterval=10.0)
        last_save, running = time.monotonic(), 0.0
        while self.step < last and not stopping:
            loss = self._one_step(batches, loss_of)
            running = loss if not running else 0.98 * running + 0.02 * loss
            bar.update()
            bar.set_postfix(loss=f"{running:.4f}", refresh=False)
            if self.step % self.schedule.report_every == 0 or self.step == self.schedule.steps:
                report(running)
            if time.monotonic() - last_save > self.schedule.save_seconds:
                self.save()
                last_save = time.monotonic()
        bar.close()
        self.save()
        signal.signal(signal.SIGTERM, before)
        return self.step == self.schedule.steps

    def _one_step(
        self, batches: Iterator[Batch], loss_of: Callable[[Batch], torch.Tensor]
    ) -> float:
        started = time.monotonic()
        loss, parts = 0.0, self.schedule.parts
        for batch in islice(batches, parts):
            part = loss_of(batch)
            (part / parts).backward()
            loss += part.item() / parts
            self.tokens += int((batch.weights > 0).sum())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = self.rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - started
        return loss

    def progress(self) -> dict[str, Any]:
        """For a line of a log."""
        return {
            "step": self.step,
            "steps": self.schedule.steps,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9)),
        }

    def save(self) -> None:
        """Writes the checkpoint through a temporary file, so that a stop never leaves half a
        file."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "progress": [self.step, self.seconds, self.tokens],
        }
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.checkpoint)

    def load(self) -> None:
        """Goes on from the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds, self.tokens = state["progress"]


def _optimizers(model: Any, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside the layers, AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inner = parameter.ndim == 2 and not any(
            part in name for part in ("embed", "shared", "lm_head", "relative_attention_bias")
        )
        (matrices if inner else others).append(parameter)
    muon = torch.optim.Muon(
        matrices,
        lr=schedule.matrix_lr,
        momentum=0.95,
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(
        others, lr=schedule.other_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return [muon, adam]
