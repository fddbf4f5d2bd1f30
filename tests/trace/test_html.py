"""The page of a trace, in a browser: what it shows, and that no text in it is more than text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cascade_engine import Engine, FixedCascade, SamplingParams
from cascade_engine.demo.family import family
from cascade_engine.demo.formats import question_prompt
from cascade_engine.trace import load, statistics
from cascade_engine.trace.html import page
from cascade_engine.trace.writer import TraceWriter
from tests.trace.browser import chromium, open_page, requested, said
from tests.trace.support import EVENTS, NASTY, lines, write

QUESTIONS = ["How can I save water at home?", NASTY]


def written(folder: Path, name: str, text: str | None = None) -> Path:
    """The page of a trace, the one by hand unless `text` is another."""
    trace = folder / f"{name}.jsonl"
    if not trace.exists():
        write(trace, text)
    out = folder / f"{name}.html"
    out.write_text(page(load(trace), trace.name), "utf-8")
    return out


def test_no_text_leaves_the_data(tmp_path: Path) -> None:
    html = written(tmp_path, "hand").read_text("utf-8")
    assert html.count("<script") == html.count("</script>") == 2
    assert "hacked = 1<" not in html
    assert "\u2028" not in html
    assert "<!--" not in html
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["levels"][2] == NASTY
    assert not re.search(r"https?:|//[a-z]+\.", html)


def test_the_policy_allows_the_page_alone(tmp_path: Path) -> None:
    """Breaks when the script changes behind its digest, or something may be loaded."""
    html = written(tmp_path, "hand").read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    script = html.rsplit("<script>", 1)[1].rsplit("</script>", 1)[0]
    style = html.split("<style>", 1)[1].split("</style>", 1)[0]
    for name, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"
    }  # fmt: skip


# In a browser


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Engine, list[Any]]:
    """The page of a real trace, the engine and its results."""
    models = family("llama")
    policy = FixedCascade([[4, 0], [0, 6]], tree=16, siblings=1)
    engine = Engine.load(models.target, models.drafts, models.table, policy=policy, threads=1)
    folder = tmp_path_factory.mktemp("page")
    with engine.trace(folder / "real.jsonl"):
        params = SamplingParams(max_tokens=60, n=2, temperature=0.7, seed=1)
        results = engine.generate([question_prompt(question) for question in QUESTIONS], params)
    return written(folder, "real"), engine, results


def find(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)


def texts(driver: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)"
    return driver.execute_script(script, selector)


def press(driver: Any, *keys: str) -> None:
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def figures(driver: Any) -> dict[str, str]:
    found = find(driver, "[data-figure]")
    return {e.get_attribute("data-figure"): e.get_attribute("textContent") for e in found}


def quiet(driver: Any, path: Path) -> None:
    """The page asked for itself alone, and complained of nothing."""
    assert said(driver) == []
    assert path.as_uri() in requested(driver)
    assert driver.execute_script("return window.hacked") is None


def test_its_figures_are_those_of_the_engine(driver: Any, traced: Any) -> None:
    path, engine, results = traced
    stats = engine.stats()
    open_page(driver, path)
    shown = figures(driver)
    assert shown["tokens"] == f"{stats['new_tokens']:,}"
    assert shown["steps"] == f"{stats['steps']:,}"
    assert shown["samples"] == "4"
    assert shown["reviews"] == f"{sum(stats['tokens_per_pass']):,}"
    assert shown["per-pass"] == f"{stats['tokens_per_target_review']:.2f}"
    emitted = [source for result in results for source in result.sources]
    for i, (level, line) in enumerate(
        zip(stats["levels"], find(driver, "#levels tbody tr"), strict=True)
    ):
        assert line.text.startswith(level["name"])
        found = [line.get_attribute(f"data-{x}") for x in ("emitted", "drafted", "accepted")]
        counts = [emitted.count(i), sum(level["drafted"]), sum(level["accepted"])]
        assert found == [str(count) for count in counts]
        cells = [cell.text for cell in line.find_elements("css selector", "td")]
        assert cells[:2] == [f"{level['passes']:,}", f"{level['rows']:,}"]
    for level, line in zip(stats["levels"][1:], find(driver, "#heat tbody tr"), strict=True):
        cells = line.find_elements("css selector", "td")
        counts = [int(cell.get_attribute("data-drafted")) for cell in cells]
        assert counts[: len(level["drafted"])] == level["drafted"]
        assert sum(counts) == sum(level["drafted"])
        kept = [int(cell.get_attribute("data-accepted")) for cell in cells]
        assert kept[: len(level["accepted"])] == level["accepted"]
        assert sum(kept) == sum(level["accepted"])
    quiet(driver, path)


def test_its_text_is_that_of_the_results(driver: Any, traced: Any) -> None:
    path, _, results = traced
    open_page(driver, path)
    options = texts(driver, "#row option")
    assert len(options) == 4
    for number, result in enumerate(results):
        prompt = texts(driver, "#prompt")[0]
        assert prompt == question_prompt(QUESTIONS[number // 2])
        tokens = find(driver, "#text .token")
        assert [int(t.get_attribute("data-level")) for t in tokens] == result.sources
        shown = [
            t.get_attribute("textContent") for t in tokens if "held" not in t.get_attribute("class")
        ]
        assert "".join(shown) == result.text
        assert len(find(driver, "#text .token.end")) == result.stats.target_calls
        if number < 3:
            find(driver, "#next")[0].click()
    assert find(driver, "#prompt script") == []
    quiet(driver, path)


def test_what_was_rejected_by_hand(driver: Any, tmp_path: Path) -> None:
    """Struck through in the tip, with probabilities, at the token that took its place; by key."""
    path = written(tmp_path, "hand")
    open_page(driver, path)
    assert texts(driver, "#legend .chip") == ["big", "small", NASTY]
    assert texts(driver, "#text .token") == [" b", " d", " d</script>", " b", "\n"]
    driver.execute_script("document.querySelector('.token').focus()")
    tip = find(driver, "#tip")[0]
    assert tip.is_displayed()
    assert f"b drafted by {NASTY}, 100%" in tip.get_attribute("textContent")
    assert find(driver, "#tip del") == []
    press(driver, "\ue014")  # right
    assert "drafted by small, 50%" in tip.text
    assert texts(driver, "#tip del span") == ["⏎", " a"]
    assert texts(driver, "#tip del sub") == ["25%"]
    press(driver, "\ue014")
    assert "big's own token, 100%" in tip.text
    press(driver, "\ue015")  # down: to the next round, whose tree left two branches
    assert texts(driver, "#tip del") == [" a50%", "</script>6.3%"]
    press(driver, "\ue014")
    assert "drafted by small, 100%" in tip.text
    assert texts(driver, "#tip del") == [" a13%", " f75%"]  # and what the stop cut off
    press(driver, "\ue007")  # Enter: the round
    assert texts(driver, "#round h3") == ["Round 2 of 2"]
    assert texts(driver, "#round .tree .tree > li")[1] == "⏎ d f75%"
    assert len(find(driver, ".token.chosen")) == 2
    press(driver, "\ue00c")  # Escape
    assert not tip.is_displayed()
    driver.execute_script("document.querySelector('#inline').click()")
    assert texts(driver, "#text del") == ["⏎ a", " a", "</script>", " a", " f"]
    assert find(driver, "img, a[href^=http]") == []
    quiet(driver, path)


def test_the_time_line_by_key(driver: Any, tmp_path: Path) -> None:
    path = written(tmp_path, "hand")
    open_page(driver, path)
    driver.execute_script("document.querySelector('#time').focus()")
    told = find(driver, "#pass")[0]
    seen = []
    for _ in range(5):
        press(driver, "\ue014")
        seen.append(re.findall(r"(?:prefill|draft|review) at [0-9.]+ m?s", told.text))
    assert seen == [
        ["prefill at 500 ms"],
        ["draft at 1.00 s"],
        ["review at 1.25 s"],
        ["review at 1.50 s"],
        ["review at 3.00 s"],
    ]
    press(driver, "\ue012", "+", "-", "0", "\ue013", "\ue015")  # left, zoom, up, down
    assert "at 1.25 s" in told.text
    press(driver, "\ue007")
    assert driver.switch_to.active_element.get_attribute("data-token") == "0"
    assert texts(driver, "#round h3") == ["Round 1 of 2"]
    quiet(driver, path)


def test_light_and_dark(driver: Any, tmp_path: Path) -> None:
    open_page(driver, written(tmp_path, "hand"))
    ground = "return getComputedStyle(document.querySelector('section')).backgroundColor"
    light = driver.execute_script(ground)
    find(driver, "#theme")[0].click()
    dark = driver.execute_script(ground)
    assert [sum(map(int, re.findall(r"\d+", colour))) > 380 for colour in (light, dark)] == [
        True,
        False,
    ]


def test_traces_that_say_little(driver: Any, tmp_path: Path) -> None:
    """None, one cut short, one without text."""
    for number, text in enumerate((lines([]), lines()[:-40], lines(EVENTS[1:]))):
        path = written(tmp_path, f"little{number}", text)
        open_page(driver, path)
        assert find(driver, "#truncated")[0].is_displayed() == (number == 1)
        quiet(driver, path)
    assert "#13" in texts(driver, "#text")[0]


def test_ten_thousand_events(driver: Any, tmp_path: Path) -> None:
    """Half of the tokens in one sample: the page opens and answers within seconds."""
    writer = TraceWriter(tmp_path / "many.jsonl", ["big", "small", "table"])
    for row in range(101):
        writer.add(
            "request", row=row, request=f"r{row}", index=0, prompt=[1], start=1, text="x" * row
        )
    at = [1] * 101
    for number in range(3300):
        row = 0 if number % 2 else 1 + number % 100
        part = {"row": row, "at": at[row], "tokens": [5, 6, 7], "probs": [1, 1, 0.5]}
        writer.add("draft", s=1e-4, level=2, rows=[part])
        review = part | {"sources": [2, 2, 2], "kept": [0, 1], "token": 8}
        writer.add("review", s=1e-3, level=0, rows=[review])
        writer.add("emit", row=row, tokens=[5, 6, 8], levels=[2, 2, 0], texts=[" a", " b", " c"])
        at[row] += 3
    writer.close()
    path = written(tmp_path, "many")
    assert statistics(load(tmp_path / "many.jsonl"))["new_tokens"] == 9900
    open_page(driver, path)
    assert figures(driver)["tokens"] == "9,900"
    assert len(texts(driver, "#text .token")) == 4950
    assert len(texts(driver, "#row option")) == 101
    took = driver.execute_script(
        "const begin = performance.now(); document.querySelector('#next').click();"
        "document.querySelector('#previous').click();"
        "document.querySelector('#zoom-in').click(); return performance.now() - begin"
    )
    assert took < 20_000
    quiet(driver, path)
