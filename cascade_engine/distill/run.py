"""One distillation: the target's answers, the training, the export, the report."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from cascade_engine.distill.answers import Answer, Wanted, write_answers
from cascade_engine.distill.judge import agreement, tokens_per_call
from cascade_engine.distill.sizes import build, parse_size
from cascade_engine.engine import Engine
from cascade_engine.errors import RequestError
from cascade_engine.models.config import LlamaConfig
from cascade_engine.models.family import open_model
from cascade_engine.policy import AutoCascade
from cascade_engine.tokenizer_files import TOKENIZER_FILES
from cascade_engine.training.batches import Batch, Example, packed
from cascade_engine.training.export import save_as
from cascade_engine.training.loop import Loop, Schedule, suit_rows
from cascade_engine.training.losses import loss_of

WORK = "training"
"""Folder in the output directory with what a stopped run goes on from."""
ROW_TOKENS = 288
TEACHER_SHARE = 0.8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """What a run is asked for. All but `steps`, `save_seconds` and `rows` must stay the same when
    a run is resumed."""

    target: Path
    prompts: list[str]
    size: str
    out: Path
    drafts: tuple[Path, ...] = ()
    """Of the target, where it has some already: its answers come sooner."""
    held_out: int = 0
    """Prompts kept for judging; 0: a tenth, 64 at most."""
    max_new_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1
    top: int = 8
    steps: int = 2000
    batch_tokens: int = 4096
    context: int = 0
    """Of the draft, and of its training rows; 0: what the longest answer needs."""
    seed: int = 0
    dtype: str = "bfloat16"
    rows: int = 16
    threads: int | None = None
    save_seconds: float = 180.0
    report_every: int = 250

    def key(self) -> dict[str, Any]:
        """What decides the answers and the draft."""
        names = ("size", "held_out", "max_new_tokens", "temperature", "samples", "top", "context",
                 "batch_tokens", "seed", "dtype")  # fmt: skip
        digest = sha256(json.dumps(self.prompts).encode()).hexdigest()
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        return {"target": self.target.resolve().name, **found, "prompts_sha256": digest}


def distill(options: Options, resume: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The report. Raises RequestError for options that exclude each other or a run that is
    another's, and what loading the target raises."""
    config, _ = open_model(options.target)
    if not isinstance(config, LlamaConfig):
        raise RequestError(f"{options.target} is no LLaMA model: drafts are distilled for those")
    shape = parse_size(options.size, config)
    _check(options)
    work = options.out / WORK
    _start(options, work, resume)
    answers = _answers(options, work, say)
    judged = [answer for answer in answers if answer.held_out]
    examples = [a.example() for a in answers if not a.held_out and a.answer]
    context = options.context or max(ROW_TOKENS, *map(len, examples))
    context = min(context, config.max_positions)
    examples = [example for example in examples if len(example) <= context]
    if not examples:
        raise RequestError(f"no answer fits a context of {context}: raise --context")
    torch.manual_seed(options.seed)
    model = build(shape, config, context)
    size = sum(parameter.numel() for parameter in model.parameters())
    say(f"draft: {size:,} parameters ({shape}), context {context}")
    done = _train(model, examples, judged, context, shape.learning_rate, options, say)
    if not done:
        raise RequestError(f"stopped; go on with --resume ({work} has the checkpoint)")
    save_as(model, options.out, DTYPES[options.dtype])
    _copy_tokenizer(options.target, options.out)
    report = {
        **options.key(),
        "parameters": size,
        "shape": asdict(shape),
        "steps": options.steps,
        "training_answers": len(examples),
        "training_tokens": sum(len(example.answer) for example in examples),
        "held_out_answers": len(judged),
        "agreement": agreement(options.out, judged, options.threads),
        **_cascade_report(options, judged),
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def _check(options: Options) -> None:
    if options.samples > 1 and options.temperature == 0:
        raise RequestError(
            f"--samples {options.samples} at temperature 0 would all be equal: give --temperature"
        )
    if len(options.prompts) < 2:
        raise RequestError("distilling needs 2 prompts at least: one is kept for judging")
    if options.held_out >= len(options.prompts):
        raise RequestError(
            f"--held-out {options.held_out} leaves none of {len(options.prompts)} prompts to learn"
        )


def _start(options: Options, work: Path, resume: bool) -> None:
    """Notes what the run is, or makes sure that it is the one that is resumed."""
    note = work / "run.json"
    if not note.exists():
        work.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(options.key(), indent=2) + "\n")
        return
    if not resume:
        raise RequestError(f"{options.out} holds a run: give --resume or another --out")
    before = json.loads(note.read_text())
    for name, value in options.key().items():
        if before.get(name) != value:
            raise RequestError(
                f"{options.out} was begun with {name} = {before.get(name)!r}, now {value!r}: "
                "give the same, or another --out"
            )


def _answers(options: Options, work: Path, say: Callable[[str], None]) -> list[Answer]:
    engine = Engine.load(
        options.target, options.drafts, policy=AutoCascade(), threads=options.threads,
        max_rows=options.rows,
    )  # fmt: skip
    if engine.tokenizer is None:
        raise RequestError(f"{options.target} has no tokenizer: prompts need one")
    prompts = [engine.tokenizer.encode(text) for text in dict.fromkeys(options.prompts)]
    held_out = options.held_out or max(1, min(64, len(prompts) // 10))
    wanted = Wanted(
        prompts, held_out, options.max_new_tokens, options.temperature, options.samples,
        options.top, options.seed,
    )  # fmt: skip

    def progress(done: int, total: int) -> None:
        say(f"answers: {done} of {total}")

    return write_answers(engine, wanted, work / "answers.jsonl", options.rows, progress)


def _train(
    model: Any,
    examples: Sequence[Example],
    judged: Sequence[Answer],
    context: int,
    rate: float,
    options: Options,
    say: Callable[[str], None],
) -> bool:
    """True when the last step was taken."""
    if options.threads:
        torch.set_num_threads(options.threads)
    suit_rows(model, context)
    schedule = Schedule(
        options.steps, rate, rate,
        report_every=options.report_every, save_seconds=options.save_seconds,
    )  # fmt: skip
    loop = Loop(model, options.out / WORK, schedule, options.out.name)
    if loop.checkpoint.exists():
        loop.load()
    rows = max(1, options.batch_tokens // context)
    stream = packed(shuffled(examples, options.seed + loop.step), rows, context, options.top)

    def loss(batch: Batch) -> torch.Tensor:
        return loss_of(model, batch, teacher_share=TEACHER_SHARE)

    def report(train_loss: float) -> None:
        line = {**loop.progress(), "train_loss": round(train_loss, 4)}
        with (options.out / WORK / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        say(f"step {loop.step} of {options.steps}: loss {train_loss:.4f}, {loop.seconds:.0f} s")

    return loop.run(stream, loss, report)


def shuffled(examples: Sequence[Example], seed: int) -> Iterator[Example]:
    """The examples in a new order each time, without end."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(examples, len(examples))


def _copy_tokenizer(target: Path, out: Path) -> None:
    for name in TOKENIZER_FILES:
        if (target / name).is_file():
            shutil.copyfile(target / name, out / name)


def _cascade_report(options: Options, judged: Sequence[Answer]) -> dict[str, Any]:
    engine = Engine.load(
        options.target, [options.out], threads=options.threads, max_rows=options.rows
    )
    return {"cascade": tokens_per_call(engine, judged, options.max_new_tokens)}
