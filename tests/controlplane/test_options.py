"""Options that newcomers and programs rely on: pods from the other side, completion, watching."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from shutil import which

import click
import pytest
from click.testing import CliRunner

from controlplane.cli.main import root
from events.cli.completion import SHELLS
from events.cli.output import watching
from events.cli.tables import print_table


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
