"""Renders one chat template in a process of its own; started by sandbox.py, imported by nobody.

A template is a program from a stranger. jinja2's sandbox keeps it from touching Python, but not
from running or growing without end, and inside a process neither can be stopped reliably. Here the
operating system does it: an alarm ends the process, a limit on its memory fails its allocations.

Frames on standard input and output are one line of JSON each. The first one is the template and
the limits, the others are variables; each is answered by `{"text": ...}` or
`{"error": kind, "message": ...}`.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

MESSAGE_CHARS = 500


def main() -> None:
    first = json.loads(sys.stdin.buffer.readline())
    sys.path.extend(first["path"])
    limit_process(first["memory"])
    alarm(first["seconds"])
    render = reported(lambda _: compiled(first["template"], first["chars"]))(None)
    answer = {"text": ""} if callable(render) else render
    while True:
        alarm(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        line = sys.stdin.buffer.readline()
        if not line or not callable(render):
            return
        alarm(first["seconds"])
        answer = reported(render)(json.loads(line))


def alarm(seconds: float) -> None:
    """The process ends, wherever it is, unless it is set again in time. 0: not."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        signal.setitimer(signal.ITIMER_REAL, seconds)


def limit_process(memory: int) -> None:
    """Memory, and what rendering has no business with: files, processes, core dumps."""
    try:
        import resource
    except ImportError:  # not on this platform; the alarm of the other side remains
        return
    for name, value in (("AS", memory), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0)):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def reported(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function with its errors as answers."""

    def call(argument: Any) -> Any:
        try:
            return function(argument)
        except MemoryError:
            return {"error": "memory", "message": ""}
        except Exception as error:
            kind = getattr(error, "kind", type(error).__name__)
            return {"error": kind, "message": str(error)[:MESSAGE_CHARS]}

    return call


class TooLong(Exception):
    kind = "chars"


class Raised(Exception):
    kind = "raised"


def compiled(source: str, max_chars: int) -> Callable[[Any], Any]:
    """The template with the settings and helpers that transformers gives chat templates."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """{% generation %} marks an answer for training; here it is its contents."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    template = environment.from_string(source)

    def render(variables: dict[str, Any]) -> dict[str, str]:
        parts, total = [], 0
        for part in template.generate(**variables):
            total += len(part)
            if total > max_chars:
                raise TooLong
            parts.append(part)
        return {"text": "".join(parts)}

    return render


def raise_exception(message: object) -> None:
    raise Raised(message)


def strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which is not wanted in a prompt."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


if __name__ == "__main__":
    main()
