"""Every command that a message, a table, a rule or a page quotes is one that this release understands."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from controlplane.cli.main import root

ROOT = Path(__file__).parents[2]
FOLDERS = ("controlplane", "events", "nodeagent", "replay", "deploy")
INLINE = re.compile(r"`(?:sudo )?isthmus ([^`]+)`")
LINE = re.compile(r"^\s*(?:[$#>] ?|run: |ExecStart=\S*/)?(?:sudo )?(?:[A-Z_]+=\S+ )*(?:\S+ \| )?isthmus ([a-z].*)$", re.M)
SAID = re.compile(r"(?:^|[:(→>] ?|with |by |try |see |use |run )isthmus ([a-z][^`\n;]*)")
STOP = re.compile(r"\s(?:#|\||>|&&|;|→|—|–|and |or |then |to |for |shows?\b|says?\b|in the\b|with the\b)|\s{2,}|[.,:)](?:\s|$)")
PLACEHOLDER = "X"


def texts(path: Path) -> Iterator[str]:
    """The quotes of a Python file's strings, with a placeholder for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "isthmus " in node.value:
            yield node.value


def quoted() -> Iterator[tuple[str, str]]:
    files = [ROOT / "README.md", *ROOT.glob("*.md")]
    for folder in FOLDERS:
        files += [p for p in sorted((ROOT / folder).rglob("*")) if p.suffix in {".md", ".py", ".yml", ".yaml", ".conf", ".env", ".service"}]
    for path in dict.fromkeys(files):
        name = str(path.relative_to(ROOT))
        pieces = list(texts(path)) if path.suffix == ".py" else [path.read_text()]
        for text in pieces:
            text = text.replace("\\\n", " ")
            found = [m[1] for m in INLINE.finditer(text)] + [m[1] for m in LINE.finditer(text)]
            if path.suffix == ".py":
                found += [m[1] for m in SAID.finditer(text) if "`" not in m[0]]
            for one in found:
                yield name, one.replace("\n", " ")


def words(text: str) -> list[str]:
    cut = STOP.split(re.sub(r"\s+", " ", text) if False else text, maxsplit=1)[0]
    try:
        return shlex.split(cut.replace("…", " "))
    except ValueError:
        return shlex.split(cut.replace("'", "").replace('"', "").replace("…", " "))


def fault(text: str) -> str:
    """Why the command line does not work; empty when it does, or when it is only a name in a sentence."""
    arguments = words(text)
    command: click.Command = root
    context = click.Context(root, info_name="isthmus")
    while isinstance(command, click.Group) and arguments:
        if arguments[0].startswith("-"):
            break
        if "|" in arguments[0] or arguments[0] in {PLACEHOLDER, "COMMAND"} or arguments[0].isupper():
            return ""
        following = command.get_command(context, arguments[0])
        if following is None:
            if command.invoke_without_command:
                break
            return f"{context.command_path} has no command {arguments[0]!r}"
        context = click.Context(following, info_name=arguments[0], parent=context)
        command, arguments = following, arguments[1:]
    bare = not arguments
    parser = command.make_parser(context)
    try:
        values, rest, _ = parser.parse_args(list(arguments))
    except click.UsageError as error:
        return error.format_message()
    if rest and not isinstance(command, click.Group):
        return f"{rest} is too much for {context.command_path}"
    if not bare and "…" not in text and "..." not in text:
        missing = [
            param.human_readable_name
            for param in command.params
            if param.required and values.get(str(param.name)) in (None, (), []) and not param.envvar
        ]
        if missing:
            return f"{context.command_path} lacks {', '.join(missing)}"
    return ""


def test_every_quoted_command_is_understood() -> None:
    found = list(quoted())
    assert len(found) > 150
    faults = {(name, text): why for name, text in found if (why := fault(text))}
    assert not faults, "\n".join(f"{name}: isthmus {text}\n    {why}" for (name, text), why in faults.items())


@pytest.mark.parametrize(
    "wrong", ["nodes list", "cluster append --cidrs X", "clb reserve main", "node show a b", "deploy nats single"]
)
def test_a_wrong_command_is_noticed(wrong: str) -> None:
    assert fault(wrong) or wrong.endswith("single")
