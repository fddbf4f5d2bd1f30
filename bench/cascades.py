"""Cascade settings over the same questions: calls of each level, times, identical answers.

All settings run on one set of models and answer each question in turn, so that a busy moment of the
machine hits all of them. Before that the question is answered for a few tokens by each, so that
every level has the prompt in its cache: times are those of decoding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import safe_open

from bench.measure import SETTLE_SECONDS
from bench.questions import Question
from cascade_engine import Engine, Generation, PlainDecoding, SamplingParams
from cascade_engine.engine.loading import Loaded, LoadOptions, load_levels
from cascade_engine.levels import Proposal, StatisticalLevel, TokenRows
from cascade_engine.ops import CpuBackend, NgramTable
from cascade_engine.policy import Policy
from cascade_engine.tables import load_table, prebuilt_for, read_info
from cascade_engine.tokenizer import Tokenizer

Prompt = str | list[int]
WARM_TOKENS = 6
STATISTICAL = ("max-gram + table", "max-gram + bigram", "max-gram", "bigram")
"""What the statistical level may be made of; "table" has contexts of up to as many tokens as it was
built with, "bigram" of one."""


@dataclass(frozen=True)
class Setting:
    name: str
    policy: Policy
    statistical: str = STATISTICAL[0]


@dataclass
class Tally:
    """What one setting did over all questions."""

    calls: list[int]
    """Passes of each level; proposals of the statistical one."""
    level_seconds: list[float]
    tokens: int = 0
    seconds: float = 0.0
    correct: int = 0
    identical: int = 0
    """Answers with the tokens and the text of the first setting's."""
    by_question: list[float] = field(default_factory=list)
    """Seconds."""

    def add(self, result: Generation, seconds: float, first: Generation, correct: bool) -> None:
        for i, level in enumerate(result.stats.levels):
            self.calls[i] += level.calls
            self.level_seconds[i] += level.seconds
        self.tokens += len(result.token_ids)
        self.seconds += seconds
        self.by_question.append(seconds)
        self.correct += correct
        self.identical += (result.token_ids, result.text) == (first.token_ids, first.text)

    def price(self, level: int) -> float | None:
        """Seconds of one call; None where there was none."""
        return self.level_seconds[level] / self.calls[level] if self.calls[level] else None


class BigramLevel(StatisticalLevel):
    """The table without Max-Gram: it sees each row's last token alone, where nothing can repeat."""

    def __init__(self, backend: CpuBackend, rows: TokenRows, table: NgramTable) -> None:
        self._own = TokenRows(*rows.tokens.shape)
        super().__init__(backend, self._own, table)
        self.name = "bigram"
        self._shared = rows

    def propose(self, proposals: Sequence[Proposal]) -> list[int]:
        for p in proposals:
            self._own.tokens[p.slot, 0] = self._shared.tokens[p.slot, p.length - 1]
        counts = super().propose([replace(p, length=1) for p in proposals])
        for p, count in zip(proposals, counts, strict=True):
            end = p.length + count
            self._shared.tokens[p.slot, p.length : end] = self._own.tokens[p.slot, 1 : 1 + count]
            self._shared.draft_probs[p.slot, p.length : end] = 1.0
        return counts


def bigram_table(path: Path, tokenizer: Tokenizer | None, vocab_size: int) -> NgramTable:
    """A table cut to contexts of one token."""
    load_table(path, tokenizer, vocab_size)  # raises what is wrong with it
    info, prefix = read_info(path), "order1."
    with safe_open(path, framework="np") as file:
        names = [n for n in file.keys() if n.startswith(prefix) and ".children" not in n]  # noqa: SIM118
        arrays = {name: memoryview(file.get_tensor(name)) for name in names}
    return NgramTable(1, info.vocab_size, info.block_shift, arrays)


class Models:
    """A target with its drafts, loaded once, under any statistical level. One request at a time."""

    def __init__(
        self,
        target: Path,
        drafts: Sequence[Path],
        table: str | Path | None,
        options: LoadOptions,
    ) -> None:
        self._loaded = load_levels(target, drafts, "none", options, None)
        if table is None:
            table = prebuilt_for(self.tokenizer, self._loaded.neural[0].vocab_size)
        self._table = None if table is None or str(table) == "none" else Path(table)
        self._engines: dict[str, Engine] = {}

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._loaded.tokenizer

    @property
    def names(self) -> list[str]:
        """Of the neural levels."""
        return [level.name for level in self._loaded.neural]

    def parameters(self) -> list[int]:
        """Trained numbers of each neural level, a tied head counted once."""
        shapes = [level.weights.config.tensor_shapes() for level in self._loaded.neural]
        return [sum(math.prod(shape) for shape in each.values()) for each in shapes]

    def engine(self, setting: Setting) -> Engine:
        """An engine that decodes as the setting says."""
        kind = setting.statistical
        if kind not in self._engines:
            loaded = replace(self._loaded, statistical=self._statistical(kind))
            self._engines[kind] = Engine(loaded, PlainDecoding(), True, 512)
        self._engines[kind].set_policy(setting.policy)
        return self._engines[kind]

    def _statistical(self, kind: str) -> StatisticalLevel:
        loaded: Loaded = self._loaded
        backend, rows = loaded.statistical._backend, loaded.rows
        vocab = loaded.neural[0].vocab_size
        table = None
        if self._table is not None and kind != "max-gram":
            cut = bigram_table if "bigram" in kind else load_table
            table = cut(self._table, self.tokenizer, vocab)
        if kind != "bigram":
            return StatisticalLevel(backend, rows, table)
        if table is None:
            raise ValueError("there is no table for this tokenizer: leave bigram settings out")
        assert isinstance(backend, CpuBackend)
        return BigramLevel(backend, rows, table)


def run(
    models: Models,
    settings: Sequence[Setting],
    questions: Sequence[Question],
    max_tokens: int,
    chat: bool = False,
) -> dict[str, Tally]:
    """By setting; the first one is what the others' answers are compared with. `chat`: prompts are
    messages in the target's chat template."""
    levels = len(models.names) + 1
    tallies = {s.name: Tally([0] * levels, [0.0] * levels) for s in settings}
    for question in questions:
        prompt: Prompt = question.prompt
        if chat:
            messages = [{"role": "user", "content": question.prompt}]
            prompt = models.engine(settings[0]).encode_chat(messages)
        for setting in settings:
            _answer(models, setting, prompt, WARM_TOKENS)
        first = None
        for setting in settings:
            time.sleep(SETTLE_SECONDS)
            begin = time.perf_counter()
            result = _answer(models, setting, prompt, max_tokens)
            seconds = time.perf_counter() - begin
            first = first or result
            right = question.is_correct(result.text)
            tallies[setting.name].add(result, seconds, first, right)
    return tallies


def _answer(models: Models, setting: Setting, prompt: Prompt, tokens: int) -> Generation:
    engine = models.engine(setting)
    (result,) = engine.generate(prompt, SamplingParams(max_tokens=tokens))
    return result
