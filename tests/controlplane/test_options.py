"""Options that newcomers and programs rely on: pods from the other side, completion, watching."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import click
import pytest
from click.testing import CliRunner

from controlplane.cli.main import AS_WHOM, report, root
from controlplane.cli.main import _run as run_line
from controlplane.cli.up import open_bus_warning
from events.cli.completion import SHELLS
from events.cli.listen import Listen
from events.cli.output import watching
from events.cli.tables import print_table
from events.errors import Refused


@pytest.mark.parametrize(("usable", "size"), [(1, 4), (5, 8), (61, 64), (62, 128), (125, 128), (126, 256)])
def test_usable_pods_plan_from_the_other_side(usable: int, size: int) -> None:
    found = CliRunner().invoke(root, ["plan", "--cidr", "10.200.0.0/16", "--usable-pods", str(usable)])
    assert found.exit_code == 0, found.output
    assert f"{size:,} addresses" in found.stdout
    assert f"{size - 3:,}" in found.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_is_a_text_that_its_shell_reads(shell: str) -> None:
    found = CliRunner().invoke(root, ["completion", shell])
    assert found.exit_code == 0, found.output
    assert "_ISTHMUS_COMPLETE" in found.stdout
    if which(shell):
        subprocess.run([shell, "-n"], input=found.stdout, text=True, check=True)


def test_bash_completes_commands_and_options() -> None:
    for words, wanted in (("isthmus nod", "node"), ("isthmus plan --usa", "--usable-pods")):
        found = CliRunner().invoke(
            root,
            [],
            prog_name="isthmus",
            env={
                "_ISTHMUS_COMPLETE": "bash_complete",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
            },
        )
        assert f"plain,{wanted}\n" in found.stdout, found.output


def test_watch_prints_into_a_pipe_only_what_is_new(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: Iterator[list[tuple[str, str]]] = iter([
        [("a", "ready")], [("a", "ready")], [("a", "silent"), ("b", "ready")],
    ])  # fmt: skip
    monkeypatch.setattr("events.cli.output.time.sleep", lambda _seconds: None)

    def show() -> None:
        rows = next(pages, None)
        if rows is None:
            raise click.Abort
        print_table(("node", "state"), rows)

    with pytest.raises(click.Abort):
        watching(show)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["NODE", "STATE"], ["a", "ready"], ["a", "silent"], ["b", "ready"]]


@pytest.mark.parametrize("arguments", [["--http", "0.0.0.0:7480"], ["--http", "10.0.0.1:1"]])
def test_the_labs_console_takes_no_other_host(arguments: list[str]) -> None:
    found = CliRunner().invoke(root, ["lab", *arguments])
    assert found.exit_code == 2
    assert "127.0.0.1 only" in found.output


@pytest.mark.parametrize(
    ("host", "locked", "knowingly", "warns"),
    [
        ("0.0.0.0", False, False, True),
        ("bus.example", False, False, True),
        ("0.0.0.0", True, False, False),
        ("0.0.0.0", False, True, False),
        ("127.0.0.1", False, False, False),
        ("::1", False, False, False),
        ("localhost", False, False, False),
    ],
)
def test_an_open_bus_is_said_loudly(host: str, locked: bool, knowingly: bool, warns: bool) -> None:
    text = open_bus_warning(host, 4222, locked=locked, knowingly=knowingly)
    assert bool(text) == warns
    assert not warns or (f"{host}:4222" in text and "--server-config" in text and "--insecure" in text)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("7480", "127.0.0.1:7480"), (":0", "127.0.0.1:0"), ("[::1]:9", "[::1]:9"), ("off", "off")],
)
def test_where_to_listen_has_one_spelling(typed: str, meant: str) -> None:
    assert Listen().convert(typed, None, None) == meant


@pytest.mark.parametrize("line", [["up", "--http"], ["agent", "--metrics"], ["controller", "--http"]])
def test_a_wrong_place_to_listen_is_refused_before_anything_starts(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for wrong in ("here", "1.2.3.4:", "70000", "host:x"):
        result = CliRunner().invoke(root, [*line, wrong])
        assert result.exit_code == 2, result.output
        assert "is not HOST:PORT, PORT or off" in result.output
    assert not list(tmp_path.iterdir())


def test_one_default_for_the_addresses_of_a_node() -> None:
    found = set()
    for words in (["up"], ["plan"], ["cluster", "define"]):
        command: click.Command = root
        for word in words:
            assert isinstance(command, click.Group)
            following = command.get_command(click.Context(command), word)
            assert following is not None
            command = following
        found.add(next(param.default for param in command.params if param.name == "pods"))
    assert found == {256}


@pytest.mark.parametrize(
    ("code", "message", "repeats"),
    [
        ("bus_unreachable", ("no NATS server answers at nats://a: check the address (--bus, ISTHMUS_BUS), "
         "the server, the network and the credentials"), True),
        ("name_repeated", ("line 3 gives the name a to uid 1, this one to uid 2: give each machine a name of "
         "its own"), True),
        ("overlay_conflict", "UDP port 8472 is bound by another program", True),
        ("event_unknown", "event 7 is of type node.flew.v1, which this projection does not know", False),
        ("node_fenced", "uid u (node n) was fenced at sequence 9 (gone)", False),
    ],
)  # fmt: skip
def test_the_way_out_is_said_once(
    code: str, message: str, repeats: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    report(Refused(code, message), as_json=False)
    said = capsys.readouterr().err
    assert ("→" not in said) is repeats, said


def test_an_ordinary_user_is_told_who_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a place that is root's or the agent's (the tests' own user may be root, to whom nothing is closed)."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, *_: Path(path) != tmp_path)
    assert run_line(["agent", "status", "--state-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"'{tmp_path}' is not readable" in said
    assert f"→ {AS_WHOM}" in said

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "write_text", closed)
    monkeypatch.setattr(Path, "mkdir", closed)
    assert run_line(["deploy", "systemd", "--to", str(tmp_path / "x")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}: Permission denied; {AS_WHOM} [file_unusable]" in said


@pytest.mark.parametrize(
    ("module", "extra", "command"),
    [
        ("pyroute2", "agent", "doctor"),
        ("pyroute2", "agent", "agent run"),
        ("pyroute2", "agent", "lab --once"),
        ("cryptography", "controller", "credentials init --host a"),
        ("zstandard", "replay", "replay sample X --events 20"),
    ],
)
def test_a_missing_extra_is_named_wherever_it_is_met(
    module: str, extra: str, command: str, tmp_path: Path
) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from controlplane.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split()],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "[prerequisite_missing]" in done.stderr
    assert f"-py3-none-any.whl[{extra}]'" in done.stderr
