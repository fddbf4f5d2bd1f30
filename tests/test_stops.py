"""Stops: where a request ends, what it shows, and that nothing is held back in vain."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from cascade_engine.detokenizer import BYTES, HIDDEN, TEXT, StreamDecoder, Surfaces, decode
from cascade_engine.errors import RequestError
from cascade_engine.stops import Release, Stop, StopChecker, StopStrings
from cascade_engine.tokenizer import Tokenizer
from tests.data import data_path

ALPHABET = "aabbé€🙂"
EOS = 0


def vocabulary() -> Surfaces:
    """Token 0 is hidden, 1..256 are bytes, the others texts of one to four characters."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(ALPHABET, k=rng.choice([1, 1, 2, 3, 4]))) for _ in range(60)]
    raw = [b"", *[bytes([i]) for i in range(256)], *[text.encode() for text in texts]]
    kinds = [HIDDEN, *[BYTES] * 256, *[TEXT] * len(texts)]
    return Surfaces(kinds, raw, {})


SURFACES = vocabulary()


def checker(stops: Sequence[str] = (), **options: object) -> StopChecker:
    return StopChecker(StreamDecoder(SURFACES, continues=True), stop=stops, **options)  # type: ignore[arg-type]


def tokens_of(rng: random.Random, text: str, noise: float = 0.1) -> list[int]:
    """A random split of a text into tokens: pieces of the vocabulary, else bytes. Noise: hidden
    tokens, and bytes that are no character."""
    ids: list[int] = []
    while text:
        pieces = [
            i for i in range(257, len(SURFACES.raw)) if text.startswith(SURFACES.raw[i].decode())
        ]
        if pieces and rng.random() < 0.7:
            ids.append(rng.choice(pieces))
            text = text[len(SURFACES.raw[ids[-1]].decode()) :]
        else:
            ids += [1 + byte for byte in text[0].encode()]
            text = text[1:]
        if rng.random() < noise:
            ids.append(rng.choice([EOS, 1 + 0xE2, 1 + 0x80]))
    return ids


def naive(
    tokens: list[int],
    stops: list[str],
    stop_ids: set[int],
    min_tokens: int,
    include_stop: bool,
) -> tuple[int, str, Stop | None]:
    """(tokens that count, text, reason), from the text of every prefix of the tokens."""
    for count in range(min_tokens + 1, len(tokens) + 1):
        if tokens[count - 1] in stop_ids:
            shown = tokens[: count if include_stop else count - 1]
            return count, decode(SURFACES, shown, True), Stop("token", tokens[count - 1])
        last = count == len(tokens)
        ends = [shown_text(tokens[:n], last and n == count) for n in (count - 1, count)]
        if (found := first_stop(ends[1], stops, len(ends[0]) + 1)) is not None:
            begin, end, stop = found
            return count, ends[1][: end if include_stop else begin], Stop("string", stop)
    return len(tokens), decode(SURFACES, tokens, True), None


def shown_text(tokens: list[int], ended: bool) -> str:
    """The text of tokens that may go on: without a character still incomplete."""
    decoder = StreamDecoder(SURFACES, continues=True)
    return decoder.push(tokens) + (decoder.flush() if ended else "")


def first_stop(text: str, stops: list[str], first_end: int) -> tuple[int, int, str] | None:
    for end in range(first_end, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return end - len(stop), end, stop
    return None


def pending(text: str, stops: list[str]) -> int:
    """The longest suffix of a text that is a proper prefix of a stop."""
    longest = max(map(len, stops), default=0)
    fits = (n for n in range(min(longest, len(text)), 0, -1) if grows(text[-n:], stops))
    return next(fits, 0)


def grows(suffix: str, stops: list[str]) -> bool:
    return any(stop != suffix and stop.startswith(suffix) for stop in stops)


def run(checker: StopChecker, tokens: list[int]) -> list[Release]:
    releases = []
    for token in tokens:
        releases.append(checker.push(token))
        if releases[-1].stopped:
            return releases
    return [*releases, checker.finish()]


@pytest.mark.parametrize("seed", range(1500))
def test_equals_the_naive_search(seed: int) -> None:
    rng = random.Random(seed)
    stops = ["".join(rng.choices(ALPHABET, k=rng.randint(1, 5))) for _ in range(rng.randint(0, 4))]
    if rng.random() < 0.1:
        stops.append("\ufffd")
    tokens = tokens_of(rng, "".join(rng.choices(ALPHABET, k=rng.randint(0, 40))))
    stop_ids = {rng.randrange(257, 317)} if rng.random() < 0.3 else set()
    min_tokens = rng.choice([0, 0, 3, 10])
    include = rng.random() < 0.3
    expected = naive(tokens, stops, stop_ids, min_tokens, include)

    check = checker(stops, stop_ids=stop_ids, min_tokens=min_tokens, include_stop=include)
    releases = run(check, tokens)
    assert (check.num_tokens, check.text, check.reason) == expected
    assert "".join(release.text for release in releases) == check.text
    assert [release.stopped for release in releases[:-1]] == [False] * (len(releases) - 1)
    assert releases[-1].reason == expected[2]


@pytest.mark.parametrize("seed", range(300))
def test_holds_back_exactly_what_could_begin_a_stop(seed: int) -> None:
    rng = random.Random(seed)
    stops = ["".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4))]
    tokens = tokens_of(rng, "".join(rng.choices("abé", k=30)))
    check = checker(stops, min_tokens=rng.choice([0, 8]))
    for count, token in enumerate(tokens, start=1):
        if check.push(token).stopped:
            break
        text = shown_text(tokens[:count], ended=False)
        assert check.text == text[: len(text) - pending(text, stops)]


@pytest.mark.parametrize("stops", [["€ab"], ["a🙂", "🙂ba"], ["🙂"], ["ab€", "abé"], []])
def test_the_text_does_not_depend_on_the_split(stops: list[str]) -> None:
    rng = random.Random(5)
    text = "abbaé€abba🙂ba" * 3
    cut = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    for _ in range(50):
        check = checker(stops)
        run(check, tokens_of(rng, text, noise=0.0))
        assert check.text == text[:cut]


@pytest.mark.parametrize(
    ("stops", "text", "reason"),
    [
        (["abcd", "bc"], "xa", "bc"),  # the earliest end, although it begins later
        (["c", "abc", "bc"], "x", "abc"),  # at one end the longest
        (["ab", "abc"], "x", "ab"),
    ],
)
def test_overlapping_stops(stops: list[str], text: str, reason: str) -> None:
    surfaces = Surfaces([TEXT], [b"xabcd"], {})
    check = StopChecker(StreamDecoder(surfaces), stop=stops)
    assert check.push(0) == Release(text, True, Stop("string", reason))


def test_include_stop_ends_behind_it() -> None:
    surfaces = Surfaces([TEXT] * 2, [b"one\n\ntwo", b"\n!"], {})
    check = StopChecker(StreamDecoder(surfaces), stop=["\n\n"], include_stop=True)
    assert check.push(0).text == "one\n\n"
    check = StopChecker(StreamDecoder(surfaces), stop=["o\n!"], include_stop=True)
    assert check.push(0).text == "one\n\ntw"
    assert check.push(1) == Release("o\n!", True, Stop("string", "o\n!"))


def test_a_stop_token_and_its_text() -> None:
    surfaces = Surfaces([TEXT, TEXT, HIDDEN], [b"ab", b"c", b""], {})

    def after(tokens: list[int], **options: object) -> tuple[str, Stop | None]:
        check = StopChecker(StreamDecoder(surfaces), **options)  # type: ignore[arg-type]
        run(check, tokens)
        return check.text, check.reason

    assert after([0, 1, 0], stop_ids=[1]) == ("ab", Stop("token", 1))
    assert after([0, 1, 0], stop_ids=[1], include_stop=True) == ("abc", Stop("token", 1))
    assert after([0, 2, 0], eos_ids=[2]) == ("ab", Stop("eos", 2))
    assert after([0, 2], eos_ids=[2], stop_ids=[2]) == ("ab", Stop("token", 2))
    # What was held back for a stop string is shown when a token ends the request.
    assert after([0, 1], stop_ids=[1], stop=["bcd"]) == ("ab", Stop("token", 1))
    assert after([0, 1], stop=["bcd"]) == ("abc", None)


def test_min_tokens_postpones_tokens_and_strings() -> None:
    surfaces = Surfaces([TEXT, TEXT], [b"a", b"b"], {})

    def count(tokens: list[int], **options: object) -> int:
        check = StopChecker(StreamDecoder(surfaces), **options)  # type: ignore[arg-type]
        run(check, tokens)
        return check.num_tokens

    assert count([0, 1, 1, 1], stop_ids=[1], min_tokens=2) == 3
    assert count([0, 0, 0, 0], stop=["aa"], min_tokens=2) == 3  # it began before
    assert count([0, 1, 0, 1], stop=["ab"], min_tokens=2) == 4


def test_drafts_are_looked_through_for_ends_that_count() -> None:
    check = checker(stop_ids=[1], min_tokens=3)
    assert check.has_end([0, 0, 0, 1], before=0)
    assert not check.has_end([0, 1, 1], before=0)
    assert check.has_end([0, 1, 1], before=1)
    assert check.has_end([1], before=3)
    assert check.has_end([1], before=9)
    assert not check.has_end([0, 2], before=9)
    assert checker(eos_ids=[2]).has_end([0, 2], before=0)


@pytest.mark.parametrize("seed", range(30))
def test_many_tokens_at_once_are_as_many_one_by_one(seed: int) -> None:
    """Breaks when tokens at once end behind another token, or release another text."""
    rng = random.Random(seed)
    text = "".join(rng.choices(ALPHABET, k=60))
    tokens = tokens_of(rng, text) + [EOS] * (seed % 3) + tokens_of(rng, text)
    options = {"stop_ids": [EOS] if seed % 2 else [], "min_tokens": rng.choice([0, 3, 80])}
    stops = ["€🙂a", "bb"] if seed % 5 == 0 else []
    alone, together = checker(stops, **options), checker(stops, **options)
    expected = []
    for token in tokens:
        expected.append(alone.push(token).text)
        if alone.reason is not None:
            break
    found: list[str] = []
    while together.reason is None and len(found) < len(tokens):
        found += together.push_all(tokens[len(found) :][: rng.randint(1, 9)])
    assert found == expected
    assert (together.reason, together.text) == (alone.reason, alone.text)
    assert together.num_tokens == alone.num_tokens


def test_a_cut_off_character_can_be_the_stop() -> None:
    check = checker(["\ufffd"])
    assert check.push(1 + 0xE2) == Release("")
    assert check.finish() == Release("", True, Stop("string", "\ufffd"))
    check = checker(["x"])
    check.push(1 + 0xE2)
    assert check.finish() == Release("\ufffd")
    assert check.finish() == Release("")


def test_without_a_tokenizer_only_tokens_stop() -> None:
    check = StopChecker(None, stop_ids=[7])
    assert check.push(3) == Release("")
    assert check.push(7) == Release("", True, Stop("token", 7))
    assert check.num_tokens == 2
    with pytest.raises(RequestError, match="need a tokenizer"):
        StopChecker(None, stop=["x"])


@pytest.mark.parametrize("stop", ["", "\ud800", None, 3])
def test_a_bad_stop_string_is_refused(stop: object) -> None:
    with pytest.raises(RequestError, match=r"stop\[1\] must be"):
        StopStrings(["ok", stop])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="list of texts"):
        checker("ab")


def test_nothing_may_follow_a_stop() -> None:
    check = checker(stop_ids=[300])
    check.push(300)
    assert check.finish().stopped
    with pytest.raises(RuntimeError, match="after stop"):
        check.push(257)


class Counted(list[int]):
    """Notes how often it is read."""

    reads = 0

    def __getitem__(self, index: Any) -> Any:
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("stops", [["ab"], ["a" * n + "b" for n in range(1, 301)]])
def test_each_character_is_looked_at_once(
    stops: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops that nearly match everywhere, many of them, and a text that is held back for long.
    Breaks when what is held back is searched again."""
    strings, steps = StopStrings(stops), 0
    fallback = strings._fallback = Counted(strings._fallback)
    step = strings.step

    def counted(state: int, character: str) -> int:
        nonlocal steps
        steps += 1
        return step(state, character)

    monkeypatch.setattr(strings, "step", counted)
    check = StopChecker(StreamDecoder(Surfaces([TEXT] * 2, [b"a" * 10, b"c"], {})), stop=strings)
    tokens = ([0] * 40 + [1]) * 20
    for token in tokens:
        check.push(token)
    characters = sum(1 if token else 10 for token in tokens)
    assert steps == characters
    assert fallback.reads <= characters


def test_with_a_real_tokenizer() -> None:
    tokenizer = Tokenizer.load(data_path("tokenizers", "llama"))
    assert tokenizer is not None
    text = "Question: naïve 日本語 🙂 text.\n\nUSER: next"
    ids = tokenizer.encode(text, add_bos=False)
    for stop in ("\n\nUSER:", "本語", "🙂", "naïve", "t.\n"):
        check = StopChecker(tokenizer.stream_decoder(), stop=[stop])
        shown = "".join(release.text for release in run(check, ids))
        assert shown == text[: text.index(stop)]
        assert stop in tokenizer.decode(ids[: check.num_tokens])
        assert stop not in tokenizer.decode(ids[: check.num_tokens - 1])
