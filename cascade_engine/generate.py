"""`python -m cascade_engine.generate`: decode a prompt with a cascade, and show what it saved."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from cascade_engine.argument_values import kv_cache_bytes, policy, sampling_params
from cascade_engine.arguments import COMPRESSION, parser
from cascade_engine.chat import Message
from cascade_engine.console import LoadProgress, colour_of, coloured, paint, say, summary
from cascade_engine.demo.family import EXAMPLE_QUESTION, Family, family
from cascade_engine.demo.formats import question_prompt
from cascade_engine.engine import Engine, Generation, Piece
from cascade_engine.errors import CascadeError, RequestError
from cascade_engine.params import SamplingParams
from cascade_engine.policy import FixedCascade, PlainDecoding
from cascade_engine.prompt_files import read_standard_input, read_text
from cascade_engine.sot.command import answer_by_points, check_options, endpoint_of, local_of

EXIT_ERROR = 2
EXIT_DIFFERENT = 3
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return _run(args)
    except BrokenPipeError:
        # Who read the output has seen enough; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    except (CascadeError, OSError, UnicodeError) as error:
        say(f"error: {error}")
        return EXIT_ERROR
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    family = _family(args)
    check_options(args)
    _check_conversation(args)
    if args.stats_json and not Path(args.stats_json).absolute().parent.is_dir():
        raise RequestError(f"--stats-json {args.stats_json}: there is no such directory")
    text = None if args.interactive else _prompt(args, family)
    if args.trace is not None and args.endpoint is not None:
        raise RequestError("--trace shows what this engine does: leave it or --endpoint out")
    if args.endpoint is not None and text is not None:
        return answer_by_points(args, text, endpoint_of(args, params))
    engine = _load(args, family, params)
    if args.compare and text is not None and args.sot is None:
        _warm_up(engine, _encoded(engine, args, family, [], text), params)
    with nullcontext() if args.trace is None else engine.trace(args.trace):
        if text is None:
            return _converse(engine, args, family, params)
        if args.sot is not None:
            return answer_by_points(args, text, local_of(args, engine, params, family is not None))
        prompt = _encoded(engine, args, family, [], text)
        results = _decode(engine, prompt, params)
    if args.stats_json:
        stats = [result.stats_dict() for result in results]
        dump = json.dumps(stats[0] if params.n == 1 else stats, indent=2)
        Path(args.stats_json).write_text(dump + "\n")
    if not args.quiet:
        for result in results:
            _summarise(result, params)
    if any(result.finish_reason == "abort" for result in results):
        return EXIT_INTERRUPTED
    return _compare(engine, prompt, params, results) if args.compare else 0


def _family(args: argparse.Namespace) -> Family | None:
    """The embedded models, where no others are named."""
    if args.target is not None or args.endpoint is not None:
        if args.model_family is not None:
            raise RequestError("--model-family names embedded models: leave it or --target out")
        return None
    for option in ("draft", "chat", "chat_format", "system"):
        if getattr(args, option):
            name = option.replace("_", "-")
            raise RequestError(f"--{name} needs --target: the embedded models have their own")
    return family(args.model_family or "llama")


def _check_conversation(args: argparse.Namespace) -> None:
    """Raises RequestError for options that a conversation lacks, or that need one."""
    if args.interactive:
        for name in ("prompt", "prompt_file", "stats_json", "compare"):
            if getattr(args, name):
                option = "the prompt" if name == "prompt" else f"--{name.replace('_', '-')}"
                raise RequestError(
                    f"--interactive reads its turns line by line: leave {option} out"
                )
        if args.n != 1:
            raise RequestError(f"--interactive has one answer a turn: leave --n {args.n} out")
    elif not args.chat:
        for name in ("system", "chat_format") if args.sot is None else ():
            if getattr(args, name):
                option = name.replace("_", "-")
                raise RequestError(f"--{option} is for conversations: add --chat or --interactive")


def _prompt(args: argparse.Namespace, family: Family | None) -> str:
    if args.prompt is not None and args.prompt_file is not None:
        raise RequestError("give the prompt as an argument or with --prompt-file, not both")
    if args.prompt_file is not None:
        return read_text(args.prompt_file).rstrip("\n")
    if args.prompt is not None:
        return args.prompt
    if sys.stdin is None or sys.stdin.isatty():
        if family is not None:
            return _example(args)
        raise RequestError("no prompt: give one as an argument or on standard input")
    text = read_standard_input().rstrip("\n")
    return text if text or family is None else _example(args)


def _example(args: argparse.Namespace) -> str:
    if not args.quiet:
        say(f"question: {EXAMPLE_QUESTION}")
    return EXAMPLE_QUESTION


def _load(args: argparse.Namespace, family: Family | None, params: SamplingParams) -> Engine:
    target, drafts, table = args.target, args.draft, args.table
    if family is not None:
        target, drafts, table = family.target, family.drafts, args.table or family.table
    levels = len(drafts) + 1
    matrix = FixedCascade.default(levels).k_matrix if family is None else family.k_matrix
    chosen = policy(args, matrix)
    if args.learn_tokens and not (args.interactive and args.tree):
        raise RequestError(
            "--learn-tokens serves the trees of later answers: give --interactive and --tree too"
        )
    progress = LoadProgress(sys.stderr)
    engine = Engine.load(
        target,
        drafts,
        table,
        dtype=args.dtype,
        policy=chosen,
        threads=args.threads,
        max_rows=16 if args.sot is not None else params.n,
        max_context=args.max_context,
        kv_cache_bytes=kv_cache_bytes(args),
        reuse_cache=params.n > 1 or args.interactive,
        learn_tokens=args.learn_tokens,
        compress_weights=COMPRESSION[args.compress_weights],
        progress=None if args.quiet else progress,
    )
    if not args.quiet:
        progress.close()
        for line in engine.report.lines:
            say(line)
    return engine


def _encoded(
    engine: Engine,
    args: argparse.Namespace,
    family: Family | None,
    history: Sequence[Message],
    text: str,
) -> list[int] | str:
    """The prompt for the engine: plain text, a question to the embedded models, or a turn."""
    if family is not None:
        return question_prompt(text)
    if not (args.chat or args.interactive):
        return text
    system = [{"role": "system", "content": args.system}] if args.system else []
    messages = [*system, *history, {"role": "user", "content": text}]
    return engine.encode_chat(messages, args.chat_format)


def _converse(
    engine: Engine, args: argparse.Namespace, family: Family | None, params: SamplingParams
) -> int:
    """Question and answer until the input ends; Ctrl-C cuts an answer short, "/clear" forgets."""
    history: list[Message] = []
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return 0
        if text.strip() == "/clear":
            history.clear()
            engine.clear_learned()
        elif text.strip():
            prompt = _encoded(engine, args, family, history, text)
            result = _decode(engine, prompt, params)[0]
            if not args.quiet:
                _summarise(result, params)
            if family is None:
                history += [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": result.text},
                ]


def _decode(
    engine: Engine, prompt: str | Sequence[int], params: SamplingParams
) -> list[Generation]:
    """Prints the text; one sample streams, and on Ctrl-C ends with what was produced."""
    if params.n > 1:
        results = engine.generate([prompt], params)
        for result in results:
            print(f"[{result.index}]", end="")
            for piece in result.pieces:
                _show(engine, piece)
            print(flush=True)
        return results
    stream = engine.stream(prompt, params)
    shown = 0
    try:
        for piece in stream:
            _show(engine, piece)
            shown += len(piece.text)
    except KeyboardInterrupt:
        stream.close()
    result = stream.result()
    print("" if params.logprobs is not None else result.text[shown:], flush=True)
    return [result]


def _show(engine: Engine, piece: Piece) -> None:
    """One token: its text, coloured on a terminal; or a line with its log-probabilities."""
    levels = len(engine.level_names)
    colour = colour_of(piece.level, levels) if coloured(sys.stdout) else None
    if piece.logprobs is None:
        print(paint(piece.text, colour), end="", flush=True)
        return
    names = engine.tokenizer.pieces() if engine.tokenizer is not None else None

    def label(token: int) -> str:
        return repr(names[token]) if names is not None else str(token)

    top = "  ".join(f"{label(token)} {value:.3f}" for token, value in piece.logprobs.top)
    shown = paint(label(piece.token_id), colour)
    probability = math.exp(piece.logprobs.logprob)
    print(f"{shown} {piece.logprobs.logprob:.3f} ({probability:.1%})   {top}".rstrip())


def _summarise(result: Generation, params: SamplingParams) -> None:
    seed = result.seed if params.temperature > 0 else None
    say(summary(result.stats, result.finish_reason or "", seed, coloured(sys.stderr)))


def _warm_up(engine: Engine, prompt: str | Sequence[int], params: SamplingParams) -> None:
    """First passes touch new memory, which neither side of a comparison is to pay for."""
    tokens = min(params.max_tokens, 24)
    engine.generate([prompt], replace(params, n=1, max_tokens=tokens, min_tokens=0))
    engine.clear_cache()
    engine.clear_learned()
    engine.reset_stats()


def _compare(
    engine: Engine,
    prompt: str | Sequence[int],
    params: SamplingParams,
    results: Sequence[Generation],
) -> int:
    """Decodes again without speculation, same seed; reports identity and the speed ratio."""
    engine.set_policy(PlainDecoding())
    engine.clear_cache()
    plain = engine.generate([prompt], replace(params, seed=results[0].seed))
    for ours, theirs in zip(results, plain, strict=True):
        if ours.token_ids != theirs.token_ids or ours.text != theirs.text:
            pairs = zip(ours.token_ids, theirs.token_ids, strict=False)
            shorter = min(len(ours.token_ids), len(theirs.token_ids))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
            say(
                f"compare: DIFFERENT from token {at} of sample {ours.index}: plain decoding has "
                f"{theirs.token_ids[at : at + 4]}, the cascade {ours.token_ids[at : at + 4]}"
            )
            return EXIT_DIFFERENT
    ours_seconds, plain_seconds = (max(r.stats.seconds for r in rs) for rs in (results, plain))
    say(
        f"compare: identical ({sum(len(r.token_ids) for r in plain)} tokens); plain decoding took "
        f"{plain_seconds:.3f} s and {sum(r.stats.target_calls for r in plain)} target passes: "
        f"the cascade is {plain_seconds / ours_seconds:.2f}x as fast"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
