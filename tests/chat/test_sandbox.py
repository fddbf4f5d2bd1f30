"""Templates that attack: each is ended with an error that says what it did."""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cascade_engine.chat import sandbox
from cascade_engine.chat.sandbox import Limits, Sandbox
from cascade_engine.errors import RequestError

LIMITS = Limits(seconds=0.4, chars=10_000, memory=300 << 20)
PATIENT = dataclasses.replace(LIMITS, seconds=30.0)
DOUBLE = "{% set ns = namespace(x='a', y=[1]) %}{% for i in range(80) %}"

ATTACKS = {
    "loops": (
        "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
        "took",
    ),
    "macros": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "took",
    ),
    "shared lists": (
        DOUBLE + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y }}",
        "took|memory",
    ),
    "comparison": (
        DOUBLE + "{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.y == [ns.y[0], [ns.y[0][0], 1]] }}"
        "{% set a = namespace(x=[1]) %}{% for i in range(80) %}{% set a.x = [a.x, a.x] %}"
        "{% endfor %}{{ a.x == ns.y }}",
        "took",
    ),
    "power": ("{{ 9 ** (9 ** 9) }}", "took|memory"),
    "long range": ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError: Range too big"),
    "repetition": ("{{ ('a' * 10 ** 10) | length }}", "300 MiB of memory"),
    "list": ("{{ ([0] * 10 ** 10) | length }}", "300 MiB of memory"),
    "filter": ("{{ 'a' | center(10 ** 10) | length }}", "300 MiB of memory"),
    "method": ("{{ 'a'.ljust(10 ** 10) | length }}", "300 MiB of memory"),
    "format": ("{{ '%10000000000d' % 1 }}", "300 MiB of memory"),
    "doubling": (DOUBLE + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "300 MiB of memory"),
    "output": ("{% for i in range(9999) %}aaaaaaaaaa{% endfor %}", "more than 10000 characters"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "nesting": ("{{ " + "(" * 9999 + ")" * 9999 + " }}", "RecursionError|broke the process"),
    "classes": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "globals": ("{{ cycler.__init__.__globals__ }}", "SecurityError"),
    "format classes": ("{{ '{0.__class__.x}'.format(messages) }}", "SecurityError"),
    "attr filter": (
        "{{ ''|attr('__class__')|string|length }}{{ (''|attr('__class__')).x }}",
        "Err",
    ),
    "mutation": ("{{ messages.append(1) }}", "SecurityError"),
    "import": ("{% import 'os' as os %}", "TypeError|TemplateNotFound|no loader"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "undefined": ("{{ nobody.name }}", "UndefinedError"),
    "type": ("{{ 1 + 'a' }}", "TypeError"),
    "refusal": ("{{ raise_exception('not like this') }}", "refuses the messages: not like this"),
}


def render(template: str, limits: Limits = PATIENT, **variables: Any) -> str:
    return Sandbox("t", template, limits).render({"messages": [], **variables})


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_with_an_error(name: str) -> None:
    template, match = ATTACKS[name]
    begin = time.perf_counter()
    with pytest.raises(RequestError, match=match) as caught:
        render(template, LIMITS if "took" in match else PATIENT)
    assert time.perf_counter() - begin < 60
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_the_helpers_of_templates() -> None:
    assert render("{{ {'a': 'é<'} | tojson }}") == '{"a": "é<"}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"
    assert render("{{ strftime_now('%Y') | length }}") == "4"
    assert (
        render("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "1"
    )
    assert render("a\n  {% if true %}\nb\n  {% endif %}\n") == "a\nb\n"
    assert (
        render("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x is defined }}")
        == "1False"
    )


def test_a_template_is_usable_after_it_was_ended() -> None:
    limited = Sandbox(
        "t", "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}.", LIMITS
    )
    for n, works in ((1, True), (50_000, False), (2, True)):
        if works:
            assert limited.render({"n": n}) == "."
        else:
            with pytest.raises(RequestError, match=r"took longer than 0\.4 s"):
                limited.render({"n": n})
    limited.close()
    assert limited.render({"n": 1}) == "."


def test_errors_do_not_end_the_process() -> None:
    kept = Sandbox("t", "{{ raise_exception('no') if bad else 'fine' }}", LIMITS)
    assert kept.render({"bad": False}) == "fine"
    process = kept._process
    with pytest.raises(RequestError, match="no"):
        kept.render({"bad": True})
    assert kept.render({"bad": False}) == "fine"
    assert kept._process is process


def test_text_comes_through_unchanged() -> None:
    echo = Sandbox("t", "{{ text }}", Limits())
    for text in ("é日🙂\U0010fffd\x00\r\n\x1b\u2028", "x" * 300_000, "🙂" * 200_000):
        assert echo.render({"text": text}) == text
    with pytest.raises(RequestError, match="more than 4000000 characters"):
        echo.render({"text": "x" * 4_000_001})


def test_threads_get_their_own_answers() -> None:
    echo = Sandbox("t", "{{ n }}", Limits())
    wrong: list[int] = []

    def ask(n: int) -> None:
        wrong.extend(i for i in range(n, n + 20) if echo.render({"n": i}) != str(i))

    threads = [threading.Thread(target=ask, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_process_ends_with_its_owner() -> None:
    short = Sandbox("t", "x", LIMITS)
    short.render({})
    assert short._process is not None
    popen = short._process._popen
    assert popen.poll() is None
    del short
    gc.collect()
    popen.wait(timeout=30)  # the timer of the last question may hold it for a moment


def test_a_process_whose_owner_was_killed_ends_by_itself(tmp_path: Path) -> None:
    """Even while its template runs for ever."""
    code = (
        "import os\n"
        "from cascade_engine.chat.sandbox import *\n"
        "s = Sandbox('t', '{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}',"
        " Limits(seconds=1.5))\n"
        "s.render({'n': 1})\n"
        "print(s._process._popen.pid, flush=True)\n"
        "import threading\n"
        "threading.Timer(0.2, os._exit, [0]).start()\n"
        "s.render({'n': 90000})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < deadline, "it runs on"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_a_sandbox_of_its_own() -> None:
    shared = Sandbox("t", "{{ n }}", Limits())
    assert shared.render({"n": 1}) == "1"
    context: Any = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(shared.render({"n": 2})))
    child.start()
    assert results.get() == "2"
    child.join()
    assert shared.render({"n": 3}) == "3"


def test_without_jinja2_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.jinja2, "__version__", "3.1.5")
    with pytest.raises(RequestError, match=r"needs jinja2 >= 3\.1\.6, got 3\.1\.5: pip install"):
        Sandbox("t", "x")
    monkeypatch.setattr(sandbox, "jinja2", None)
    with pytest.raises(RequestError, match=r"needs the jinja2 package: pip install .*chat"):
        Sandbox("t", "x")


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(RequestError, match="JSON types"):
        Sandbox("t", "x").render({"x": {1, 2}})
    with pytest.raises(RequestError, match="may have 1000000 characters, got 1000001"):
        Sandbox("t", "x" * 1_000_001)
