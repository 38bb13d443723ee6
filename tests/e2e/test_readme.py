"""The README is true: every command in it exists with the options it shows, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from controlplane.cli.main import root

HERE = Path(__file__).parent.parent.parent
README = (HERE / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("   #")[0].split(" # ")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
COMMANDS = [line for line in LINES if re.match(r"(\.venv/bin/)?isthmus ", line)]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_isthmus_command_of_the_readme_can_be_parsed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)
    arguments = shlex.split(line)[1:]
    command: click.Command = root
    context = click.Context(root, info_name="isthmus")
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        following = command.get_command(context, name)
        assert following is not None, f"{line}: no command {name!r}"
        command, context = following, click.Context(following, info_name=name, parent=context)
    command.make_context(line, list(arguments))


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (HERE / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert {"lab", "test", "bench"} <= named <= targets


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_every_link_of_the_readme_leads_somewhere(target: str) -> None:
    assert (HERE / target).exists()


def test_the_shown_output_names_the_checks_that_the_lab_runs() -> None:
    source = "".join(path.read_text() for path in sorted((HERE / "deploy" / "lab").rglob("*.py")))
    shown = re.findall(r"^✓ (.*?)  [\d.]+ s$", README, re.MULTILINE)
    assert len(shown) == 13
    for name in shown:
        # Names with a node in them are format strings in the source.
        pattern = re.escape(name)
        for node in ("cloud\\-1", "cloud\\-4", "idc\\-2"):
            pattern = pattern.replace(node, r"\{[a-z_.]+\}")
        assert re.search(pattern, source), name
