"""The command line of `python -m cascade_engine.generate`."""

from __future__ import annotations

import argparse
from typing import NoReturn

from cascade_engine.policy import PUBLISHED

COMPRESSION: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}
FAMILIES = ("llama", "t5")

EXAMPLES = """\
examples:
  python -m cascade_engine.generate "How can I save water at home?"
  python -m cascade_engine.generate --model-family t5 --compare
  python -m cascade_engine.generate --target DIR "Once upon a time"
  python -m cascade_engine.generate --target DIR --chat --interactive
  python -m cascade_engine.generate --sot on "How can I save water at home?"
  python -m cascade_engine.generate --target DIR --draft SMALLER --k-matrix "13,10;0,10" --compare
  python -m cascade_engine.generate --target DIR --temperature 0.8 --top-p 0.95 --n 3 --seed 7 "Hi"
  echo "Once upon a time" | python -m cascade_engine.generate --target DIR --quiet

exit codes: 0 done; 2 an error, explained in one line; 3 --compare found a difference;
130 interrupted (what was produced is printed); 141 the output is no longer read.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line: the usage of fifty options would hide it."""
        self.exit(2, f"error: {message}; --help lists all options\n")


def parser() -> argparse.ArgumentParser:
    p = _Parser(
        prog="python -m cascade_engine.generate",
        description="Decode a prompt with a cascade of drafts; the text is that of plain decoding.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument(
        "prompt",
        nargs="?",
        help="default: --prompt-file, else standard input; a built-in question with no --target",
    )
    p.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file")
    _add_models(p.add_argument_group("models"))
    _add_sampling(p.add_argument_group("sampling"))
    _add_stops(p.add_argument_group("stopping"))
    _add_cascade(p.add_argument_group("cascade"))
    _add_conversations(p.add_argument_group("conversations"))
    _add_sot(p.add_argument_group("skeleton-of-thought"))
    _add_output(p.add_argument_group("output"))
    return p


def _add_models(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target", metavar="DIR", help="Hugging Face directory; default: the embedded models"
    )
    group.add_argument(
        "--model-family", choices=FAMILIES, help="which embedded models; default: llama"
    )
    group.add_argument(
        "--draft",
        metavar="DIR",
        action="append",
        default=[],
        help="repeatable, large to small; self:N: the target's first N layers",
    )
    group.add_argument(
        "--table", metavar="FILE", help="n-gram table, or none; default: the prebuilt one"
    )
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, int8")
    group.add_argument("--threads", type=int, help="default: CASCADE_THREADS or all cores")
    group.add_argument("--max-context", type=int, metavar="N", help="default: the target's own")
    group.add_argument(
        "--compress-weights",
        choices=COMPRESSION,
        default="auto",
        help="bfloat16 in 12 bits a number without loss; auto: where it is faster",
    )
    group.add_argument("--kv-cache-gb", type=float, metavar="GB", help="for all levels together")


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    group.add_argument("--top-k", type=int, default=0, metavar="K")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P")
    group.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R")
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="R")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="R")
    group.add_argument("--seed", type=int, help="default: drawn anew, and reported")
    group.add_argument(
        "--acceptance",
        choices=("exact", "rejection"),
        default="exact",
        help="of drafts: those that are the target's own tokens (default), or more, which keeps "
        "the distribution but not the tokens",
    )
    group.add_argument("--n", type=int, default=1, help="samples of the prompt")
    group.add_argument("--prediction", metavar="FILE", help="an expected answer to draft from")
    group.add_argument(
        "--decoder-prefix", metavar="TEXT", help="how an encoder-decoder's answer begins"
    )


def _add_stops(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--stop", metavar="TEXT", action="append", default=[], help="repeatable")
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="no stop before")
    group.add_argument("--ignore-eos", action="store_true")


def _add_cascade(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--k-matrix",
        metavar="K",
        help='draft lengths, a row per reviewing level, such as "13,10;0,10" (increments)',
    )
    group.add_argument(
        "--preset",
        metavar="NAME",
        help=f"a published matrix and lenience: {', '.join(PUBLISHED)}",
    )
    group.add_argument(
        "--policy",
        metavar="NAME",
        help="auto (default): finds its setting while it runs; fixed: --k-matrix (default where "
        "one of these options is given); plain: no drafts; or a policy file (docs/tuning.md)",
    )
    group.add_argument(
        "--lenience", type=float, metavar="L", help="between drafting levels, >= 1 (default 1)"
    )
    group.add_argument(
        "--tree",
        metavar="N",
        help="the target reviews trees of up to N nodes, 1..64; N,M: the first draft M nodes",
    )
    group.add_argument(
        "--siblings", type=int, metavar="K", help="of a tree: runners-up of each neural draft"
    )
    group.add_argument(
        "--min-confidence",
        type=float,
        metavar="C",
        help="a neural draft ends where its tokens' joint probability falls below C, 0..1 "
        "(default 0: never)",
    )
    group.add_argument("--plain", action="store_true", help="no speculation")
    group.add_argument(
        "--compare", action="store_true", help="also decode plainly; report identity and speed"
    )


def _add_conversations(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--chat", action="store_true", help="the prompt is a user's message")
    group.add_argument("--system", metavar="TEXT", help="a system message before it")
    group.add_argument(
        "--chat-format", metavar="NAME", help="llama-2, vicuna or plain; default: the target's own"
    )
    group.add_argument("--interactive", action="store_true", help="a conversation, line by line")
    group.add_argument(
        "--learn-tokens",
        type=int,
        default=0,
        metavar="N",
        help="of its answers, kept to draft later ones from; needs --tree; default: none",
    )


def _add_sot(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--sot", choices=("auto", "on", "off"), help="write an outline, then its points at once"
    )
    group.add_argument("--sot-prompts", metavar="NAME", help="default, short, or a folder")
    group.add_argument(
        "--sot-expand",
        choices=("fork", "ragged", "left-padded"),
        default="fork",
        help="the same tokens; default: fork",
    )
    group.add_argument("--points-per-request", type=int, default=1, metavar="N")
    group.add_argument(
        "--dependencies", action="store_true", help="let points say which others they need"
    )
    group.add_argument(
        "--router",
        metavar="DIR",
        help='for auto: a classifier\'s folder, or "model"',
    )
    group.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible one, with --model")
    group.add_argument("--model", metavar="NAME", help="what the endpoint calls its model")
    group.add_argument(
        "--api-key-env", metavar="NAME", default="OPENAI_API_KEY", help="variable with the key"
    )
    group.add_argument("--concurrency", type=int, default=16, metavar="N", help="of the endpoint")
    group.add_argument("--timeout", type=float, default=60.0, metavar="S", help="of one attempt")
    group.add_argument(
        "--prices", metavar="IN,OUT", help="of a million prompt and answer tokens: report the cost"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="print each token's, and the top N"
    )
    group.add_argument("--stats-json", metavar="FILE", help="write counts and times")
    group.add_argument(
        "--trace",
        metavar="FILE.jsonl",
        help="write every draft and review; python -m cascade_engine.trace shows them",
    )
    group.add_argument("--quiet", action="store_true", help="the text alone")
