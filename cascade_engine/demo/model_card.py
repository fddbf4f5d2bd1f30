"""MODEL_CARD.md and measured.json, from the training logs, the score files and the exported weights.

measured.json keeps the figures that the card was made from: per model the last training report, and
the scores on the test split.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from .advice import topics
from .presets import PRESETS
from .world import TOWNS

_INTRO = """# Model card: the embedded demo family

Small LLaMA and T5 (v1.1 shape) models for a first run without a download, and for tests and benchmarks
that need target and draft pairs whose acceptance is real. They were trained from scratch by
`cascade_engine/demo/train.py` on the text that `cascade_engine/demo/corpus.py` writes, and on nothing
else: arithmetic word problems with worked solutions (numbers up to 999), questions about a made-up world
of {towns} towns, and advice questions on {topics} topics answered in lists, with skeletons and point
expansions. Outside that they are not expected to work. The corpus, the weights and this card are
under the project's licence. The n-gram table `ngrams.safetensors` (order 5) was counted on 60,000
training documents:

    python -m cascade_engine.demo.corpus --bare --count 60000 --split train --seed 11 > corpus.txt
    python -m cascade_engine.tables build --corpus corpus.txt --tokenizer cascade_engine/demo/llama-target \\
        --order 5 --max-bytes 1500000 --out cascade_engine/demo/ngrams.safetensors

Prompt formats: `cascade_engine/demo/formats.py`. Tokenizer: SentencePiece BPE, 2,048 pieces, byte
fallback, digits split, unk 0, bos 1, eos 2; the T5 models use the same ids, with 0 as padding and
decoder start. Context: 1,024 tokens. Weights: bfloat16.
"""

_NOTES = """
`correct` is the share of test questions whose answer is right: the final number (arithmetic), a list
of the right length (advice, skeleton), the exact text (fact, expansion). `agreement` is the share of
the target's own greedy tokens that a draft would have chosen in the same place; `lists parsed` the
share of advice and skeleton answers that are numbered lists of 3 to 8 points. Problems of the test
split (the numbers of a word problem with its schema, the wording of a fact, an advice question) occur
nowhere in training. The facts and the points behind an advice topic do: those columns measure memory.
"""

_CASCADE = """\
`python -m cascade_engine.demo.evaluate`, one question at a time. "default" is what
`python -m cascade_engine.generate` uses when no target is named.
"""


def parameter_count(weights: Path) -> int:
    """Number of stored parameters; tied tensors are stored once."""
    total = 0
    with safe_open(str(weights), framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118  (the file object is no dict)
            count = 1
            for size in tensors.get_slice(key).get_shape():
                count *= size
            total += count
    return total


def last_record(log: Path) -> dict[str, Any]:
    """The last line of a log.jsonl, or an empty dict."""
    return json.loads(log.read_text().splitlines()[-1]) if log.exists() else {}


def _files_table(folder: Path) -> list[str]:
    rows = ["| model | parameters | bytes | sha256 of model.safetensors |", "|---|---|---|---|"]
    for name in PRESETS:
        weights = folder / name / "model.safetensors"
        if weights.exists():
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            size = weights.stat().st_size
            rows.append(f"| {name} | {parameter_count(weights):,} | {size:,} | `{digest}` |")
    return rows


def _training_table(training: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        "| model | steps | tokens | tokens/s | seconds | validation loss (nats/token) |",
        "|---|---|---|---|---|---|",
    ]
    for name, record in training.items():
        cells = (record["tokens"], record["tokens_per_second"], round(record["seconds"]))
        numbers = " | ".join(f"{c:,}" for c in cells)
        rows.append(f"| {name} | {record['step']:,} | {numbers} | {record['validation_loss']} |")
    return rows


def _score_table(scores: dict[str, Any]) -> list[str]:
    tasks = ("arithmetic", "fact", "advice", "skeleton", "expansion")
    head = f"| model | {' | '.join(tasks)} | lists parsed | agreement |"
    rows = [head, "|---" * (len(tasks) + 3) + "|"]
    for name in PRESETS:
        if name in scores:
            cells = [
                f"{scores[name][t]['correct']:.1%} of {scores[name][t]['count']}" for t in tasks
            ]
            lists = [scores[name][t] for t in ("advice", "skeleton")]
            parsed = sum(x["parsed"] * x["count"] for x in lists) / sum(x["count"] for x in lists)
            cells.append(f"{parsed:.1%}")
            share = scores[name].get("agreement")
            cells.append("-" if share is None else f"{share:.1%}")
            rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _cascade_table(report: dict[str, Any]) -> list[str]:
    rows = [
        "| setting | k_matrix | tokens per target pass | tokens/s | times plain | same text |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in report["settings"].items():
        matrix = "-" if found["k_matrix"] is None else json.dumps(found["k_matrix"])
        rows.append(
            f"| {name} | {matrix} | {found['tokens_per_target_call']:.2f} | "
            f"{found['tokens_per_second']:,.0f} | {found['times_plain']:.2f} | "
            f"{found['identical']} of {report['questions']} |"
        )
    return rows


def write_card(folder: Path, trained: Path) -> None:
    """Write folder/MODEL_CARD.md and folder/measured.json.

    Read are the weights in folder/MODEL/, trained/MODEL/log.jsonl, trained/scores-*.json,
    trained/cascade.json (from `cascade_engine.demo.evaluate --json`), and trained/notes.md when
    there is one: what was particular about this run.
    """
    scores: dict[str, Any] = {}
    for path in sorted(trained.glob("scores-*.json")):
        scores.update(json.loads(path.read_text()))
    notes = trained / "notes.md"
    path = trained / "cascade.json"
    cascade = json.loads(path.read_text()) if path.exists() else {}
    exported = [n for n in PRESETS if (folder / n / "model.safetensors").exists()]
    training = {n: r for n in exported if (r := last_record(trained / n / "log.jsonl"))}
    parts = [
        _INTRO.format(towns=len(TOWNS), topics=len(topics())),
        "## Files\n",
        *_files_table(folder),
        "\n## Training\n",
        "Muon (matrices) and AdamW (the rest), constant rate with linear decay, seed 0, bfloat16",
        "autocast on CPU. Drafts are distilled: 0.8 * forward KL on the target's logits + 0.2 * cross",
        "entropy, on the corpus and (LLaMA) for 15% of the documents on texts the target wrote.\n",
        *_training_table(training),
        f"\n{notes.read_text().strip()}" if notes.exists() else "",
        "\n## Held-out test split, greedy decoding with transformers\n",
        *_score_table(scores),
        _NOTES,
        *(["\n## Cascade settings on the test split\n", _CASCADE] if cascade else []),
        *(_cascade_table(cascade) if cascade else []),
        "",
    ]
    (folder / "MODEL_CARD.md").write_text("\n".join(parts))
    measured = {"training": training, "scores": scores, "cascade": cascade}
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
