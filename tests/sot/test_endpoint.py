"""Skeleton-of-Thought over HTTP: parallel, patient, and nothing lost."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from cascade_engine import SamplingParams
from cascade_engine.errors import RequestError
from cascade_engine.sot import Prices, SotOptions
from tests.sot.server import Reply, Server, serving

pytest.importorskip("openai")

from cascade_engine.sot.endpoint import EndpointOptions, EndpointSkeletonOfThought

SKELETON = "1. Fix taps\n2. Shower less\n3. Full loads\n4. Rain barrels"


def content(body: dict[str, Any]) -> str:
    return "\n".join(message["content"] for message in body["messages"])


def wanted(body: dict[str, Any]) -> int | None:
    """The point that a request is about; None: the skeleton."""
    match = re.search(r"[Ww]rite (?:only )?point (\d+)", content(body))
    return int(match.group(1)) if match else None


def answer(body: dict[str, Any]) -> Reply:
    index = wanted(body)
    if index is None:
        return Reply(SKELETON)
    return Reply(f"Text number {index}.")


def sot_on(server: Server, **options: Any) -> EndpointSkeletonOfThought:
    names = EndpointOptions.__dataclass_fields__
    own = {"timeout": 20.0, "backoff": 0.01, "longest_wait": 0.05}
    own |= {k: options.pop(k) for k in list(options) if k in names}
    endpoint = EndpointOptions(url=server.url, model="m", **own)
    return EndpointSkeletonOfThought(endpoint, SotOptions(**options))


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_is_answered_point_by_point(stream: bool) -> None:
    with serving(answer) as server:
        result = sot_on(server, stream=stream).answer("How can I save water?")
    assert result.used_sot
    assert result.points == ["Fix taps", "Shower less", "Full loads", "Rain barrels"]
    assert result.text.split("\n")[1] == "2. Shower less Text number 2."
    assert result.failures == {}
    assert len(server.requests) == 5
    assert {body["model"] for body in server.requests} == {"m"}
    prompt_words = sum(len(content(body).split()) for body in server.requests)
    assert result.total("prompt_tokens") == prompt_words
    assert result.total("new_tokens") == len(SKELETON.split()) + 4 * 3
    tokens = result.total("new_tokens") or 0
    assert result.cost(Prices(2.0, 8.0)) == pytest.approx((2 * prompt_words + 8 * tokens) / 1e6)


def test_pieces_stream_as_points_are_written() -> None:
    with serving(answer) as server:
        stream = sot_on(server, stream=True).stream("How can I save water?")
        pieces = list(stream)
    texts: dict[int, str] = {}
    for point, text in pieces:
        texts[point] = texts.get(point, "") + text
    result = stream.result()
    assert texts.pop(0) == result.skeleton_text
    assert {i: text.strip() for i, text in texts.items()} == {
        e.index: e.text for e in result.expansions
    }
    assert len(pieces) > 12


def test_points_run_in_parallel_up_to_the_limit() -> None:
    barrier = threading.Barrier(4)

    def together(body: dict[str, Any]) -> Reply:
        if wanted(body) is not None:
            barrier.wait(30)
        return answer(body)

    with serving(together) as server:
        assert sot_on(server).answer("How can I save water?").failures == {}
        assert server.most_at_once == 4
    with serving(lambda body: Reply(answer(body).text, delay=0.02)) as server:
        assert sot_on(server, concurrency=2).answer("Q?").failures == {}
        assert server.most_at_once == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    seen: set[int | None] = set()

    def flaky(body: dict[str, Any]) -> Reply:
        if wanted(body) in seen:
            return answer(body)
        seen.add(wanted(body))
        return Reply(status=status, headers={"retry-after": "0.01"})

    with serving(flaky) as server:
        result = sot_on(server).answer("How can I save water?")
    assert result.failures == {}
    assert len(server.requests) == 10
    assert [stage.attempts for stage in result.stages] == [2, 8]


@pytest.mark.parametrize(
    ("bad", "attempts"),
    [
        (Reply(status=400), 1),
        (Reply(status=401), 1),
        (Reply(status=500), 3),
        (Reply("never", delay=3.0), 3),
        (Reply("never seen", cut=True), 3),
    ],
    ids=["400", "401", "500", "time-out", "connection"],
)
def test_a_point_that_fails_is_reported_and_the_others_stay(bad: Reply, attempts: int) -> None:
    def one_bad(body: dict[str, Any]) -> Reply:
        return bad if wanted(body) == 3 else answer(body)

    patience = 0.4 if bad.delay else 20.0
    with serving(one_bad) as server:
        result = sot_on(server, attempts=3, timeout=patience).answer("How can I save water?")
        assert sum(wanted(body) == 3 for body in server.requests) == attempts
    assert list(result.failures) == [3]
    assert [e.text for e in result.expansions if e.index != 3] == [
        "1. Fix taps Text number 1.",
        "2. Shower less Text number 2.",
        "4. Rain barrels Text number 4.",
    ]
    # The point itself is still in the answer.
    assert "3. Full loads" in result.text
    assert result.total("prompt_tokens") is None
    assert result.cost(Prices(1, 1)) is None


def test_a_stream_that_breaks_keeps_what_came() -> None:
    def broken(body: dict[str, Any]) -> Reply:
        if wanted(body) == 2:
            return Reply("A text that is long enough to be cut somewhere in it.", cut=True)
        return answer(body)

    with serving(broken) as server:
        result = sot_on(server, stream=True).answer("How can I save water?")
        assert sum(wanted(body) == 2 for body in server.requests) == 1
    assert list(result.failures) == [2]
    assert result.expansions[1].text.startswith("2. Shower less A text")


def test_a_dead_endpoint_is_an_answer_with_its_error() -> None:
    with serving(answer) as server:
        url = server.url
    options = EndpointOptions(url=url, model="m", attempts=2, backoff=0.01)
    result = EndpointSkeletonOfThought(options).answer("How can I save water?")
    assert not result.used_sot
    assert "skeleton's request failed" in result.reason
    assert list(result.failures) == [-1]


def test_a_talkative_model_is_understood() -> None:
    def chatty(body: dict[str, Any]) -> Reply:
        index = wanted(body)
        if index is None:
            return Reply(f"Sure, here it is:\n\n{SKELETON}\n\nI hope that helps!")
        names = SKELETON.split("\n")
        return Reply(f"Gladly!\n{names[index - 1]} by doing it.")

    with serving(chatty) as server:
        result = sot_on(server).answer("How can I save water?")
    assert len(result.points) == 4
    assert result.text.split("\n")[0] == "1. Fix taps by doing it."


def test_several_points_in_a_request_cost_fewer_prompt_tokens() -> None:
    def grouped(body: dict[str, Any]) -> Reply:
        match = re.search(r"Write points ([\d, ]+) ", content(body))
        if match is None:
            return answer(body)
        lines = [f"{i}. Point {i} text." for i in match.group(1).split(", ") if i != "4"]
        return Reply("\n".join(lines))

    with serving(grouped) as server:
        result = sot_on(server, points_per_request=2).answer("How can I save water?")
        assert len(server.requests) == 3
        single = sot_on(server).answer("How can I save water?")
        short = sot_on(server, points_per_request=2, prompts="short").answer("How can I?")
    texts = [e.text for e in result.expansions]
    assert texts == ["1. Point 1 text.", "2. Point 2 text.", "3. Point 3 text.", ""]
    assert list(result.failures) == [4]
    costs = [r.total("prompt_tokens") or 0 for r in (single, result, short)]
    assert costs[0] > costs[1] > costs[2]


def test_the_answer_begins_in_the_assistants_message_where_that_is_continued() -> None:
    with serving(answer) as server:
        sot_on(server, continues_answers=True).answer("How can I save water?")
    assert [m["role"] for m in server.requests[0]["messages"]] == ["user", "assistant"]
    assert server.requests[0]["messages"][1]["content"] == "1."


def test_the_model_can_be_the_router() -> None:
    said = {"text": "C."}

    def routed(body: dict[str, Any]) -> Reply:
        if "Say A, B or C" in content(body):
            return Reply(said["text"])
        return Reply("An ordinary answer.") if said["text"] != "A" else answer(body)

    with serving(routed) as server:
        endpoint = EndpointOptions(url=server.url, model="m")
        sot = EndpointSkeletonOfThought(endpoint, SotOptions(use="auto"), router="model")
        ordinary = sot.answer("What is 2 + 2?")
        assert (ordinary.used_sot, ordinary.text) == (False, "An ordinary answer.")
        assert ordinary.reason == "the model as router said C"
        said["text"] = "A"
        assert sot.answer("How can I save water?").used_sot
        said["text"] = "B"
        assert not sot.answer("How can I save water?").used_sot
        said["text"] = "maybe"
        assert "said 'maybe'" in sot.answer("How can I save water?").reason


def test_points_wait_for_those_they_need() -> None:
    def dependent(body: dict[str, Any]) -> Reply:
        if wanted(body) is None:
            return Reply("1. One\n2. Two\n3. Both (after 1, 2)\n4. Four (after 9)")
        return Reply(f"Text number {wanted(body)}.")

    with serving(dependent) as server:
        result = sot_on(server, dependencies=True).answer("Compare the two.")
    third = next(body for body in server.requests if wanted(body) == 3)
    assert "1. One Text number 1.\n2. Two Text number 2." in content(third)
    assert all("Text number" not in content(b) for b in server.requests if wanted(b) in (1, 2, 4))
    assert result.skeleton.waves() == [[1, 2, 4], [3]]
    assert any("9" in note for note in result.notes)


def test_what_the_protocol_lacks_is_refused() -> None:
    options = EndpointOptions(url="http://127.0.0.1:9/v1", model="m")
    for params in (SamplingParams(top_k=5, temperature=1.0), SamplingParams(ignore_eos=True)):
        with pytest.raises(RequestError, match="does not take"):
            EndpointSkeletonOfThought(options, SotOptions(params=params))
    with pytest.raises(RequestError, match="texts to continue"):
        EndpointSkeletonOfThought(options, SotOptions(prompts="embedded"))
    for bad in ({"url": "ftp://x"}, {"concurrency": 0}, {"timeout": -1.0}, {"attempts": 0}):
        with pytest.raises(RequestError):
            EndpointOptions(**{"url": "http://x", "model": "m", **bad})
