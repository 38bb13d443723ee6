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
from events.bus.connection import DEFAULT_BUS, BusOptions
from events.cli.hints import reaching
from events.cli.options import bus_options
from events.errors import Refused
from nodeagent.config import AgentConfig

ROOT = Path(__file__).parents[2]
FOLDERS = ("controlplane", "events", "nodeagent", "replay", "deploy")
KINDS = {".md", ".py", ".yml", ".yaml", ".conf", ".env", ".service"}
INLINE = re.compile(r"`(?:sudo )?isthmus ([^`]+)`")
LINE = re.compile(
    r"^\s*(?:[$#>] ?|run: |ExecStart=\S*/)?(?:sudo )?(?:[A-Z_]+=\S+ )*(?:\S+ \| )?isthmus ([a-z].*)$",
    re.MULTILINE,
)
SAID = re.compile(r"(?:^|[:(→>] ?|with |by |try |see |use |run )isthmus ([a-z][^`\n;]*)")
GAP = re.compile(r"\s{2,}")
"""What follows a gap is a comment beside the command."""
ENDS = {
    "#",
    "|",
    ">",
    "<",
    "&",
    "&&",
    "→",
    "—",
    "–",
    "and",
    "or",
    "then",
    "to",
    "for",
    "on",
    "in",
    "with",
    "the",
    "shows",
}
PLACEHOLDER = "X"


def texts(path: Path) -> Iterator[str]:
    """The texts of a file; of Python its strings, with a placeholder for what is filled in."""
    if path.suffix != ".py":
        yield path.read_text()
        return
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in parts:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "isthmus " in node.value:
            yield node.value


def quoted() -> Iterator[tuple[str, str]]:
    """File and command line of every quote."""
    files = sorted(ROOT.glob("*.md"))
    for folder in FOLDERS:
        files += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in KINDS]
    for path in files:
        for raw in texts(path):
            text = re.sub(r" *\\\n *", " ", raw)
            found = [match[1] for pattern in (INLINE, LINE) for match in pattern.finditer(text)]
            if path.suffix == ".py":
                found += [match[1] for match in SAID.finditer(text) if "`" not in match[0]]
            for one in found:
                yield str(path.relative_to(ROOT)), " ".join(one.splitlines())


def words(text: str) -> list[str]:
    """The arguments, up to where the sentence goes on."""
    line = GAP.split(re.sub(r"(--[a-z-]+) …", rf"\1 {PLACEHOLDER}", text.strip()), maxsplit=1)[0]
    try:
        found = shlex.split(line)
    except ValueError:
        found = line.replace("'", "").replace('"', "").split()
    arguments: list[str] = []
    for word in found:
        if word in ENDS or word == "…":
            break
        plain = word.rstrip(".,:;)") or word
        arguments.append(PLACEHOLDER if re.match(r"-\d", plain) else plain)  # a time like -2h is no option
        if word[-1:] in ".,:;)" and word not in {".", ".."}:
            break
    return arguments


def fault(text: str, *, must_agree: bool = False) -> str:
    """Why the command line does not work; empty when it does, or when a sentence only names the command.

    ``must_agree``: a command that asks for a confirmation has to say --yes.
    """
    arguments = words(text)
    command: click.Command = root
    context = click.Context(root, info_name="isthmus")
    while isinstance(command, click.Group) and arguments:
        if arguments[0] in {PLACEHOLDER, "COMMAND"} or "|" in arguments[0] or arguments[0].isupper():
            return ""
        if arguments[0].startswith("-") and "run" in command.commands:  # the agent's own rule
            arguments = ["run", *arguments]
        following = None if arguments[0].startswith("-") else command.get_command(context, arguments[0])
        if following is None:
            if command.invoke_without_command or arguments[0] in {"-h", "--help", "--version"}:
                break
            return f"{context.command_path} has no command {arguments[0]!r}"
        context = click.Context(following, info_name=arguments[0], parent=context, **following.context_settings)
        command, arguments = following, arguments[1:]
    return _misused(
        command, context, arguments, whole="…" not in text and "..." not in text, must_agree=must_agree
    )


def _misused(
    command: click.Command, context: click.Context, arguments: list[str], *, whole: bool, must_agree: bool
) -> str:
    if any("|" in word for word in arguments):
        return ""
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(arguments))
    except click.UsageError as error:
        return error.format_message()
    if rest and not isinstance(command, click.Group) and not context.allow_extra_args:
        return f"{rest} is too much for {context.command_path}"
    asks = any(
        param.name == "yes" and "Without a terminal" not in str(getattr(param, "help", ""))
        for param in command.params
    )
    if asks and whole and must_agree and not values.get("yes"):
        return f"{context.command_path} asks for a confirmation: say --yes"
    there = {name for name, value in values.items() if isinstance(value, str | tuple | list) and value}
    kinds = [p for p in command.params if str(p.name) in there and isinstance(p.type, click.Choice)]
    if not whole or len(arguments) == len(kinds) or "--help" in arguments:
        return ""  # only the command's name, with what kind of it
    missing = [
        param.human_readable_name
        for param in command.params
        if param.required and str(param.name) not in there and not param.envvar
    ]
    return f"{context.command_path} lacks {', '.join(missing)}" if missing else ""


TOLD = (
    "controlplane/cluster",
    "controlplane/controller",
    "controlplane/kubernetes",
    "events/codes",
    "nodeagent/",
)
"""Where conditions and refusals are written."""
ONLY_NAMED = ("nodeagent/cli.py", "nodeagent/commands/", "nodeagent/config.py")
"""Help texts, and what compares the beginnings of commands."""


def test_every_quoted_command_is_understood() -> None:
    found = list(quoted())
    assert len(found) > 150
    faults = {(name, text): why for name, text in found if (why := fault(text))}
    for name, text in found:
        if name.startswith(TOLD) and not name.startswith(ONLY_NAMED) and (why := fault(text, must_agree=True)):
            faults[name, text] = why
    assert not faults, "\n".join(f"{name}: isthmus {text}\n    {why}" for (name, text), why in faults.items())


def test_an_agents_quotes_are_of_its_own_directories_and_bus() -> None:
    bus = BusOptions(servers=("nats://b1:4222", "nats://b2:4222"), credentials="/etc/my creds")
    odd = AgentConfig(
        cluster="prod", node="a", kind="cloud", bus=bus, state_dir=Path("/srv/a b"), cni_dir=Path("/srv/cni"),
        device="other", cni_data_dir="/srv/leases",
    )  # fmt: skip
    usual = AgentConfig(cluster="default", node="a", kind="cloud", bus=BusOptions(servers=(DEFAULT_BUS,)))
    for command in ("clean", "leave", "end-pods", "forget", "new-identity"):
        said = odd.quote(f"isthmus agent {command} --yes", asks=command == "leave")
        assert "--state-dir '/srv/a b'" in said
        assert not fault(said.removeprefix("isthmus "), must_agree=True)
        assert usual.quote(f"isthmus agent {command} --yes", asks=True) == f"isthmus agent {command} --yes"
    assert "--bus nats://b1:4222,nats://b2:4222 --cluster prod --creds '/etc/my creds'" in odd.quote(
        "isthmus agent leave --yes", asks=True
    )


def test_a_shown_message_quotes_commands_that_reach_the_same_cluster() -> None:
    told: list[str] = []

    @click.command()
    @bus_options
    def shows(*, context: object) -> None:
        told.append(reaching("it is gone: isthmus node fence old --yes; there: isthmus agent end-pods --yes"))
        raise Refused("node_unknown", "look: isthmus node list")

    top = click.Context(root, info_name="isthmus")
    with (
        shows.make_context("shows", ["--bus", "nats://b:4222", "--cluster", "prod"], parent=top) as running,
        pytest.raises(Refused) as refused,
    ):
        shows.invoke(running)
    flags = "--bus nats://b:4222 --cluster prod"
    assert told == [
        f"it is gone: isthmus node fence {flags} old --yes; there: isthmus agent end-pods --yes",
    ]
    assert refused.value.message == f"look: isthmus node list {flags}"
    assert not fault(f"node fence {flags} old --yes", must_agree=True)


@pytest.mark.parametrize(
    "wrong",
    ["nodes list", "cluster append --cidrs X", "clb reserve main", "node show a b", "cluster network add X"],
)
def test_a_wrong_command_is_noticed(wrong: str) -> None:
    assert fault(wrong)


def verbs(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command, info_name=name)
    for each in command.list_commands(context):
        found = command.get_command(context, each)
        assert found is not None
        if not found.hidden:
            yield from verbs(found, f"{name} {each}")


def test_every_verb_shows_an_example() -> None:
    """That it is understood, :func:`test_every_quoted_command_is_understood` looks at."""
    found = dict(verbs(root, "isthmus"))
    assert len(found) > 100
    usual = "isthmus agent run --"
    shown = {name: (verb.help or "").replace("isthmus agent --", usual) for name, verb in found.items()}
    assert [name for name in found if name not in shown[name]] == []
