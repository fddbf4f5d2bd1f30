"""The demo family's SentencePiece tokenizer: training, loading, encoding.

BPE with byte fallback, digits split, unk = 0, bos = 1, eos = 2 and a dummy prefix, as LLaMA's. A
newline is the byte piece <0x0A>. The T5 models share the very same ids (see presets.py).
`python -m cascade_engine.demo.tokenizer --out FILE` trains it in a few seconds.
"""

from __future__ import annotations

import argparse
import io
from itertools import islice
from pathlib import Path

import sentencepiece as spm

from .corpus import documents

VOCAB_SIZE = 2048
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2


def train_tokenizer(out: Path, num_documents: int = 40_000, seed: int = 0) -> None:
    """Train on the first documents of the train split and write a SentencePiece model file."""
    lines = (
        line for d in islice(documents("train", seed), num_documents) for line in d.text.split("\n")
    )
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=-1,
        num_threads=1,
        input_sentence_size=0,
        minloglevel=1,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(model.getvalue())


def load_tokenizer(path: Path) -> spm.SentencePieceProcessor:
    """Load a tokenizer; raises FileNotFoundError that names the command to make one."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: run python -m cascade_engine.demo.tokenizer --out {path}"
        )
    return spm.SentencePieceProcessor(model_file=str(path))


def encode_document(
    tokenizer: spm.SentencePieceProcessor, prompt: str, answer: str
) -> tuple[list[int], int]:
    """Token ids of BOS + prompt + answer + EOS, and the number of ids before the answer.

    The prompt is encoded alone, as at inference time: its last piece never merges with the answer.
    """
    head = [BOS_ID, *tokenizer.encode(prompt)]
    return head + encode_answer(tokenizer, answer), len(head)


def encode_answer(tokenizer: spm.SentencePieceProcessor, answer: str) -> list[int]:
    """Ids of an answer that begins with a blank (which is the dummy prefix), with EOS."""
    if not answer.startswith(" "):
        raise ValueError(f"answer must begin with a blank, got {answer[:20]!r}")
    return [*tokenizer.encode(answer[1:]), EOS_ID]


def main() -> None:
    parser = argparse.ArgumentParser(description="train the demo tokenizer")
    parser.add_argument("--out", type=Path, default=Path("build/demo/tokenizer.model"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train_tokenizer(args.out, seed=args.seed)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
