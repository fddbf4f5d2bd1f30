"""The command line, run as a user runs it."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cascade_engine.arguments import parser
from cascade_engine.engine import Engine
from cascade_engine.generate import _prompt, main
from cascade_engine.tables.shipped import FOLDER
from tests.data import data_path

LLAMA_TABLE = FOLDER / "llama2.safetensors"
PROMPT = "Once upon a time, there was a little girl named Lily."


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cascade_engine.generate", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)


def test_piped_output_is_the_text_alone() -> None:
    done = run("--target", data_path("stories260k"), "--max-new-tokens", 30, PROMPT)
    assert done.returncode == 0
    assert done.stdout.startswith(" She loved to play")
    assert "\x1b" not in done.stdout + done.stderr
    assert "tokens per pass" in done.stderr
    quiet = run(
        "--target", data_path("stories260k"), "--max-new-tokens", 30, "--quiet", stdin=PROMPT
    )
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, done.stdout, "")


def test_compare_reports_identity_and_speed(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    done = run(
        *("--target", data_path("stories260k"), "--draft", data_path("llama2xs")),
        *("--k-matrix", "4,4;0,6", "--lenience", 2, "--tree", "16,5", "--siblings", 2),
        *("--min-confidence", 0.3),
        *("--temperature", 0.8, "--seed", 5),
        *("--max-new-tokens", 40, "--min-tokens", 30, "--compare", "--stats-json", stats, PROMPT),
    )
    assert done.returncode == 0, done.stderr
    assert "compare: identical (40 tokens)" in done.stderr
    found = json.loads(stats.read_text())
    assert found["seed"] == 5
    assert found["new_tokens"] == 40
    assert found["tokens_per_target_call"] == pytest.approx(40 / found["target_calls"])
    assert [level["name"] for level in found["levels"]] == ["stories260k", "llama2xs", "max-gram"]
    by_position = {"reviewed_by_position", "accepted_by_position"}
    level = found["levels"][0]
    assert set(level) == {"name", "calls", "drafted", "accepted", "seconds", *by_position}
    assert sum(found["tokens_per_pass"]) == found["target_calls"]


def test_on_a_terminal_tokens_are_coloured_by_level() -> None:
    """Runs behind a pseudo-terminal: the text is coloured, and what is coloured is the same."""
    parent, child = pty.openpty()
    target = data_path("stories260k")
    command = [sys.executable, "-m", "cascade_engine.generate", "--target", target, PROMPT]
    process = subprocess.Popen(
        [*map(str, command), "--max-new-tokens", "60"], stdin=child, stdout=child, stderr=child
    )
    os.close(child)
    shown = b""
    while True:
        try:
            data = os.read(parent, 4096)
        except OSError:
            break
        if not data:
            break
        shown += data
    assert process.wait(60) == 0
    text = shown.decode()
    assert "loading stories260k" in text
    assert "\x1b[32m" in text
    plain = run("--target", target, PROMPT, "--max-new-tokens", 60, "--quiet").stdout.strip()
    bare = text.replace("\x1b[32m", "").replace("\x1b[0m", "").replace("\r\n", "\n")
    assert plain in bare


def test_ctrl_c_ends_with_what_was_produced() -> None:
    command = [sys.executable, "-u", "-m", "cascade_engine.generate", "--target"]
    command += [str(data_path("stories260k")), "--ignore-eos", "--max-new-tokens", "100000"]
    process = subprocess.Popen(
        [*command, "--plain", PROMPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    rest, errors = process.communicate(timeout=60)
    # The model's context may end before the signal arrives on a fast machine.
    assert process.returncode in (0, 130)
    assert first + rest.strip()
    assert "Traceback" not in errors
    assert "finish: abort" in errors or "finish: length" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "/no/such/folder", "x"], "/no/such/folder"),
        (["--max-new-tokens", "0", "x"], "max_tokens must be an integer >= 1, got 0"),
        (["--k-matrix", "1,2;3", "x"], "k_matrix must be square"),
        (["--plain", "--lenience", "2", "x"], "leave --lenience out"),
        (["--plain", "--min-confidence", "0.3", "x"], "leave --min-confidence out"),
        (["--policy", "auto", "--min-confidence", "0.3", "x"], "give --policy fixed"),
        (["--min-confidence", "3", "x"], "min_confidence must be in 0..1 (0: off), got 3"),
        (["--plain", "--compare", "x"], "leave --plain out"),
        (["--policy", "auto", "--lenience", "2", "x"], "give --policy fixed"),
        (["--policy", "fixed", "--plain", "x"], "exclude each other"),
        (["--kv-cache-gb", "-1", "x"], "--kv-cache-gb must be > 0, got -1"),
        (
            ["--dtype", "float8", "x"],
            "'float32', 'bfloat16', 'int8', got 'float8'",
        ),
        (["--compress-weights", "on", "x"], "is loaded as float32: pass dtype='bfloat16'"),
        (["--chat-format", "morse", "--chat", "x"], "llama-2"),
        (["--prompt-file", "/no/such/file"], "No such file"),
        (["--stats-json", "/no/such/x.json", "x"], "--stats-json /no/such/x.json: there is no"),
        (["--system", "Be brief.", "x"], "--system is for conversations: add --chat"),
        (["--chat-format", "plain", "x"], "--chat-format is for conversations: add --chat"),
        (["--interactive", "x"], "--interactive reads its turns line by line: leave the prompt"),
        (["--interactive", "--stats-json", "x"], "line by line: leave --stats-json out"),
        (["--interactive", "--n", "2", "--temperature", "1"], "leave --n 2 out"),
        (["--table", "/no/such/table", "x"], "/no/such/table"),
        (["--table", str(LLAMA_TABLE), "x"], "was built for another tokenizer"),
        (["--learn-tokens", "100", "--tree", "8", "x"], "give --interactive and --tree too"),
        (["--learn-tokens", "100", "--interactive"], "give --interactive and --tree too"),
        (
            ["--learn-tokens", "9", "--interactive", "--tree", "8"],
            "learn_tokens must be 0 (off) or an integer in 64",
        ),
    ],
)
def test_errors_are_one_line_with_the_way_out(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--target" not in arguments:
        arguments = ["--target", str(data_path("stories260k")), *arguments]
    assert main(arguments) == 2
    shown = capsys.readouterr()
    errors = shown.err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert message in errors[-1]
    assert not shown.out.strip()


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--max-tokens", "5", "x"])
    assert ended.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == ["error: unrecognized arguments: --max-tokens x; --help lists all options"]


@pytest.mark.parametrize("source", ["file", "input", "bytes", "none"])
def test_prompts_that_cannot_be_read(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "latin-1.txt"
    file.write_bytes(b"caf\xe9")
    inputs = {
        "input": io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "utf-8"),
        "bytes": io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "ascii", "surrogateescape"),
        "none": None,
    }
    monkeypatch.setattr("sys.stdin", inputs.get(source))
    options = ["--prompt-file", str(file)] if source == "file" else []
    assert main(["--target", str(data_path("stories260k")), *options]) == 2
    errors = capsys.readouterr().err
    where = {"file": str(file), "none": "no prompt: give one"}.get(source, "standard input")
    assert where in errors
    assert source == "none" or "is not UTF-8 text, first at position 3: convert it" in errors


def test_a_file_ends_where_standard_input_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("One\nday\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("One\nday\n"))
    args = parser().parse_args([])
    from_file = parser().parse_args(["--prompt-file", str(file)])
    assert _prompt(args, None) == _prompt(from_file, None) == "One\nday"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("wish", "colours"), [("", True), ("1", False)])
def test_no_color_is_heeded(wish: str, colours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", wish)
    options = ["--target", str(data_path("stories260k")), "--max-new-tokens", "80"]
    for name in ("stdout", "stderr"):
        shown = Terminal()
        monkeypatch.setattr(f"sys.{name}", shown)
        main([*options, "--k-matrix", "10", PROMPT])
        assert ("\x1b[32m" in shown.getvalue()) == colours


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = [sys.executable, "-m", "cascade_engine.generate", "--max-new-tokens", "40", "--quiet"]
    command += ["--target", str(data_path("stories260k")), PROMPT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == 141


@pytest.mark.parametrize("learning", [(), ("--learn-tokens", 500, "--tree", 16)])
def test_a_conversation_line_by_line(learning: tuple[object, ...]) -> None:
    done = run(
        *("--target", data_path("stories260k"), "--interactive", "--chat-format", "plain"),
        *("--max-new-tokens", 10, "--quiet", "--table", "none", *learning),
        stdin="Hello\nOnce upon a time\n/clear\nHello\n",
    )
    assert done.returncode == 0, done.stderr
    answers = [line for line in done.stdout.splitlines() if line]
    assert len(answers) >= 3
    assert answers[0] == answers[-1]


def test_clear_forgets_what_was_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    clear = Engine.clear_learned

    def watched(engine: Engine) -> None:
        learned.append(engine.statistical.learned)
        clear(engine)
        learned.append(engine.statistical.learned)

    monkeypatch.setattr(Engine, "clear_learned", watched)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/clear\nHello\n"))
    arguments = ["--target", str(data_path("stories260k")), "--interactive", "--quiet"]
    arguments += ["--chat-format", "plain", "--max-new-tokens", "10", "--tree", "16"]
    assert main([*arguments, "--learn-tokens", "500"]) == 0
    assert len(learned) == 2
    assert learned[0] > 10
    assert learned[1] == 0


def test_several_samples_and_logprobs() -> None:
    target = data_path("stories260k")
    options = ("--max-new-tokens", 8, "--temperature", 1, "--seed", 1, "--quiet", PROMPT)
    samples = run("--target", target, "--n", 3, *options)
    assert [line[:3] for line in samples.stdout.splitlines() if line[:1] == "["] == [
        "[0]",
        "[1]",
        "[2]",
    ]
    logprobs = run("--target", target, "--logprobs", 2, *options)
    assert len([line for line in logprobs.stdout.splitlines() if "%" in line]) == 8
