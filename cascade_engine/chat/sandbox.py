"""Chat templates, rendered where they can do no harm: see worker.py for the other side."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cascade_engine.errors import RequestError

jinja2: Any
markupsafe: Any
try:
    import jinja2
    import markupsafe
except ImportError:
    jinja2 = markupsafe = None

OLDEST_JINJA2 = (3, 1, 6)
"""Earlier sandboxes are known to leak."""
MAX_TEMPLATE_CHARS = 1_000_000
START_SECONDS = 60.0
GRACE_SECONDS = 2.0
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Limits:
    """What rendering a conversation may use."""

    seconds: float = 5.0
    chars: int = 4_000_000
    """Of the text that comes out."""
    memory: int = 512 << 20
    """Bytes of the process that renders, the interpreter included (where the platform can)."""


class Sandbox:
    """One template and the process that renders it.

    The process starts with the first use, is started anew after it was ended, and ends with this
    object or with the program. Usable from several threads.

    Raises RequestError when jinja2 is missing or too old, and for what happens while rendering.
    """

    def __init__(self, name: str, template: str, limits: Limits | None = None) -> None:
        _check_jinja2(name)
        if len(template) > MAX_TEMPLATE_CHARS:
            raise RequestError(
                f"{name}: a template may have {MAX_TEMPLATE_CHARS} characters, got {len(template)}"
            )
        self._name = name
        self._limits = limits or Limits()
        self._first = {
            "template": template,
            "path": [str(Path(m.__file__).parent.parent) for m in (jinja2, markupsafe)],
            **vars(self._limits),
        }
        self._lock = threading.Lock()
        self._process: _Process | None = None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The template's text for these variables, which are made of JSON types."""
        line = _frame(variables)
        with self._lock:
            process = self._process
            if process is None or process.owner != os.getpid():
                process = self._process = self._start()
            answer = process.ask(line, self._limits.seconds + GRACE_SECONDS)
            if answer is None:
                self._process = None
        return self._text(answer, process)

    def close(self) -> None:
        """Ends the process, if there is one."""
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None

    def _start(self) -> _Process:
        process = _Process(self._name, self._limits)
        try:
            # Compiling is part of the first use: what is wrong with a template is reported alike.
            self._text(process.ask(_frame(self._first), START_SECONDS), process)
        except RequestError:
            process.end()
            raise
        return process

    def _text(self, answer: Any, process: _Process) -> str:
        """The text in an answer, or the error in it (None: the process has ended)."""
        limits, template = self._limits, f"chat template {self._name}"
        if answer is None:
            raise RequestError(f"{template} {process.cause_of_end()}")
        if isinstance(answer.get("text"), str):
            return str(answer["text"])
        kind, message = answer.get("error"), answer.get("message")
        if kind == "raised":
            raise RequestError(f"{template} refuses the messages: {message}")
        if kind == "chars":
            raise RequestError(f"{template} wrote more than {limits.chars} characters")
        if kind == "memory":
            raise RequestError(f"{template} needed more than {limits.memory >> 20} MiB of memory")
        raise RequestError(f"{template}: {kind}: {message}")


class _Process:
    """The process, and a thread that waits for its answers so that nobody waits for ever."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.owner = os.getpid()
        self._limits = limits
        command = [sys.executable or "python3", "-I", "-S", str(WORKER)]
        keep = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "TZ")
        try:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,  # buffered streams hold locks, which a fork would copy
                env={key: os.environ[key] for key in keep if key in os.environ},
            )
        except OSError as error:
            raise RequestError(
                f"chat template {name}: no process can be started to render it ({error}); choose a "
                "built-in format"
            ) from None
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._input = self._popen.stdin
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._late = False
        # A character takes at most twelve in JSON: two escapes of six.
        arguments = (self._popen.stdout, self._answers, 12 * limits.chars + 10_000)
        threading.Thread(target=_read_lines, args=arguments, daemon=True).start()
        self.end = weakref.finalize(self, _end, self._popen)

    def ask(self, line: bytes, seconds: float) -> Any:
        """Sends a frame and waits for the answer; None if the process ended or had to be."""
        timer = threading.Timer(seconds, self._give_up)
        timer.start()
        try:
            with contextlib.suppress(OSError):
                rest = memoryview(line)
                while rest:
                    rest = rest[self._input.write(rest) or 0 :]
            answer = self._answers.get()
        finally:
            timer.cancel()
        return json.loads(answer) if answer.endswith(b"\n") else None

    def cause_of_end(self) -> str:
        """For people, after `ask` gave None."""
        self._popen.kill()
        status = self._popen.wait()
        if self._late or (hasattr(signal, "SIGALRM") and status == -signal.SIGALRM):
            return f"took longer than {self._limits.seconds:g} s and was ended"
        return f"broke the process that rendered it (exit status {status})"

    def _give_up(self) -> None:
        self._late = True
        self._popen.kill()


def _read_lines(stream: IO[bytes], lines: queue.SimpleQueue[bytes], limit: int) -> None:
    """Hands over each line; at last an empty one, when there are no more or one is longer than
    `limit`. Nobody else may close the stream: its number would soon be another file's."""
    parts: list[bytes] = []
    with stream:
        while part := stream.read(1 << 16):
            parts.append(part)
            if part.endswith(b"\n"):  # there is one answer at a time
                lines.put(b"".join(parts))
                parts = []
            elif sum(map(len, parts)) > limit:
                break
    lines.put(b"")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _frame(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(value).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"messages and variables must be made of JSON types: {error}") from None


def _check_jinja2(name: str) -> None:
    way_out = "pip install 'cascade_engine[chat]', or choose a built-in format"
    if jinja2 is None:
        raise RequestError(f"chat template {name} needs the jinja2 package: {way_out}")
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdecimal())
    if version < OLDEST_JINJA2:
        oldest = ".".join(map(str, OLDEST_JINJA2))
        raise RequestError(
            f"chat template {name} needs jinja2 >= {oldest}, got {jinja2.__version__}: {way_out}"
        )
