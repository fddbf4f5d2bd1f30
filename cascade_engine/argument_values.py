"""What the command line of `python -m cascade_engine.generate` asks for, as the engine takes it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cascade_engine.errors import RequestError
from cascade_engine.params import SamplingParams
from cascade_engine.policy import AutoCascade, FixedCascade, PlainDecoding, Policy, published
from cascade_engine.prompt_files import read_text


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """The request's parameters; raises RequestError."""
    prediction = None if args.prediction is None else read_text(args.prediction)
    return SamplingParams(
        max_tokens=args.max_new_tokens,
        n=args.n,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        seed=args.seed,
        acceptance=args.acceptance,
        min_tokens=args.min_tokens,
        ignore_eos=args.ignore_eos,
        stop=args.stop,
        logprobs=args.logprobs,
        prediction=prediction,
        decoder_prefix=args.decoder_prefix,
    )


def _check_compare(args: argparse.Namespace) -> None:
    """Raises RequestError where plain decoding may differ by right."""
    if args.compare and args.acceptance == "rejection" and args.temperature > 0:
        raise RequestError(
            "--compare compares tokens, and --acceptance rejection keeps only their distribution: "
            "leave one of them out, or use --temperature 0"
        )


def policy(args: argparse.Namespace, default: Sequence[Sequence[int]]) -> Policy | Path:
    """The policy asked for or its file, `default` being the fixed one's matrix when none is given;
    raises RequestError for options that exclude each other."""
    _check_compare(args)
    settings = ("preset", "k_matrix", "lenience", "tree", "siblings", "min_confidence")
    fixed = any(getattr(args, name) is not None for name in settings)
    if args.plain and args.policy not in (None, "plain"):
        raise RequestError(f"--plain and --policy {args.policy} exclude each other: give one")
    if args.plain or args.policy == "plain":
        for name in settings:
            if getattr(args, name) is not None:
                option = name.replace("_", "-")
                raise RequestError(f"plain decoding does not speculate: leave --{option} out")
        if args.compare:
            raise RequestError("--compare compares with plain decoding: leave --plain out")
        return PlainDecoding()
    if args.policy == "auto" and fixed:
        raise RequestError(
            "--policy auto finds K, lenience and trees itself: leave --k-matrix, --lenience, "
            "--tree, --siblings and --min-confidence out, or give --policy fixed"
        )
    if args.policy == "auto" or (args.policy is None and not fixed):
        return AutoCascade()
    if args.policy not in (None, "fixed"):
        if fixed:
            raise RequestError(
                "a policy file sets K, lenience and trees: leave --preset, --k-matrix, --lenience, "
                "--tree, --siblings and --min-confidence out"
            )
        return Path(args.policy)
    return _fixed(args, default)


def _fixed(args: argparse.Namespace, default: Sequence[Sequence[int]]) -> FixedCascade:
    lenience = 1.0 if args.lenience is None else args.lenience
    drafting = _tree(args.tree), args.siblings or 0, args.min_confidence or 0.0
    if args.preset is not None:
        for name, given in (("--k-matrix", args.k_matrix), ("--lenience", args.lenience)):
            if given is not None:
                raise RequestError(f"--preset sets matrix and lenience: leave {name} out")
        setting = published(args.preset)
        return FixedCascade(setting.k_matrix, setting.lenience, *drafting)
    if args.k_matrix is not None:
        return FixedCascade.parse(args.k_matrix, lenience, *drafting)
    return FixedCascade(default, lenience, *drafting)


def _tree(text: str | None) -> list[int]:
    """Nodes for each reviewing level."""
    try:
        return [0] if text is None else [int(entry) for entry in text.split(",")]
    except ValueError:
        raise RequestError(
            f"--tree must be numbers of nodes such as 32 or 32,8, got {text!r}"
        ) from None


def kv_cache_bytes(args: argparse.Namespace) -> int | None:
    if args.kv_cache_gb is None:
        return None
    if not args.kv_cache_gb > 0:
        raise RequestError(f"--kv-cache-gb must be > 0, got {args.kv_cache_gb}")
    return int(args.kv_cache_gb * 1e9)
