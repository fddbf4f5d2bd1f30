"""What the built-in router looks at: words, pairs of words, and kinds of wording.

Everything is computed from the text alone, in a fraction of a millisecond. The kinds were written
down before training, from what Skeleton-of-Thought suits (lists, advice, comparisons) and does not
(calculations, program text, stories, roles, short facts).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import NamedTuple

MAX_CHARACTERS = 2000
"""The beginning and the end of a longer request are looked at, half of this each."""
_WORD = re.compile(r"\w+|\?")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")

# Words, and pairs of words joined by a blank.
_KINDS = {
    "asks for a list": """tip tips way ways strategy strategies step steps method methods technique
        techniques suggestion suggestions advice ideas recommendations factors reasons causes
        effects benefits advantages disadvantages pros cons characteristics features types kinds
        examples aspects differences similarities challenges risks impact impacts implications
        implication signs symptoms principles components options tools resources skills qualities
        consequences measures practices elements topics themes""",
    "improves": """improve increase reduce avoid prevent manage overcome prepare learn start choose
        become make get develop build maintain help cope|deal with""",
    "effect": """impact affect effect influence contribute importance important consequence|
        role of""",
    "compares": "compare contrast difference differences versus vs similarities",
    "explains": """explain describe discuss elaborate outline summarize summarise analyze analyse
        evaluate identify""",
    "plans": """plan itinerary guide schedule program checklist curriculum agenda proposal roadmap
        recipe""",
    "writes": "write compose draft create craft rewrite continue generate",
    "creative": """story poem haiku song lyrics script dialogue dialog novel scene character fiction
        joke limerick rap monologue essay letter email speech blog post review paragraph headline
        title slogan ad article memo cover""",
    "plays a role": """imagine pretend roleplay persona prompt|act as|role play|suppose you|
        you are|picture yourself|if you|consider yourself|as a|would you""",
    "code": """code function program algorithm implement python java javascript html css class
        array string regex script compile bash linux php method variable api json xml query debug
        error loop integer sql|list of""",
    "mathematics": """calculate compute solve prove proof equation integral derivative probability
        sum average theorem matrix polynomial triangle equal equals percent ratio vector estimate
        determine|number of|value of|find the""",
    "works on a text": """translate translation classify extract paraphrase grammar sentence passage
        sentiment convert edit proofread|correct the|following text|given text|the following|
        identify the|named entities|sort the|fix the""",
    "offers a choice": "choose options|correct answer|true or|multiple choice",
    "asks yes or no": """|do you|would you|could you|are you|is it|is there|are there|can i|can we|
        can you|should i|should we|was there""",
    "asks what are": "|what are|what were",
    "asks what is": "|what is|what s|what was",
    "asks how to": """|how to|how can|how do|how could|how should|how would""",
    "asks how it is": "|how does|how did|how is|how are|how was|how were",
    "asks how many": "|how many|how much|how long|how far|how old|how often|how tall|how big",
    "asks why": "why",
    "asks who or when": """who when where|which is|which was|which of|which are|which has""",
    "is short": "briefly brief|a single|one word|one sentence|in one",
    "speaks of oneself": "i my me",
}
_PATTERNS = {
    "begins as yes or no": re.compile(
        r"\s*(?:is|are|was|were|do|does|did|can|could|should|would|will|has|have|had|am)\b", re.I
    ),
    "step by step": re.compile(r"step.by.step", re.I),
    "program text": re.compile(r"```|[{}]|\w\(\)|;\s*$|==|->|<\w+>", re.M),
    "formula": re.compile(r"\$[^$]+\$|\\[a-z]|\^"),
    "quotes": re.compile(r"[\"“”]"),
    "lettered choices": re.compile(r"(?:^|\s)[A-D][).:]\s"),
    "digits": re.compile(r"\d"),
}


def _lexicon() -> dict[str, tuple[int, ...]]:
    """From a word or pair to the kinds that it belongs to."""
    found: dict[str, list[int]] = {}
    for kind, text in enumerate(_KINDS.values()):
        words, *phrases = text.split("|")
        for term in (*words.split(), *(" ".join(phrase.split()) for phrase in phrases)):
            found.setdefault(term, []).append(kind)
    return {term: tuple(kinds) for term, kinds in found.items()}


_LEXICON = _lexicon()
KIND_NAMES = tuple(
    f"{name} ({where})" for where in ("anywhere", "in what is asked") for name in _KINDS
) + tuple(_PATTERNS)


class Features(NamedTuple):
    """Counts of words and pairs, and which of `KIND_NAMES` hold."""

    terms: Counter[str]
    kinds: list[int]


def features_of(request: str) -> Features:
    """Of one request."""
    text = _shortened(request)
    terms = _terms(text)
    kinds = sorted(_kinds(terms)) + [len(_KINDS) + kind for kind in _kinds(_terms(_asked(text)))]
    offset = 2 * len(_KINDS)
    kinds += [offset + i for i, pattern in enumerate(_PATTERNS.values()) if pattern.search(text)]
    return Features(terms, kinds)


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[: MAX_CHARACTERS // 2]}\n{text[-MAX_CHARACTERS // 2 :]}"


def _terms(text: str) -> Counter[str]:
    words = _WORD.findall(text.lower())
    terms = Counter(words)
    terms.update(map(" ".join, itertools.pairwise(words)))
    return terms


def _kinds(terms: Counter[str]) -> set[int]:
    return {kind for term in terms.keys() & _LEXICON.keys() for kind in _LEXICON[term]}


def _asked(text: str) -> str:
    """The first sentence and the first two questions, or the first two sentences."""
    sentences = [s.strip() for s in _SENTENCE.findall(text) if s.strip()]
    questions = [s for s in sentences if s.endswith("?")][:2]
    return " ".join([*questions, *sentences[:1]] if questions else sentences[:2])
