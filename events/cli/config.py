"""Configuration of a role: one TOML file, then the environment, then flags; the later wins.

The settings of a role are the options of its command: the file's keys are the flags' names without
the dashes (``log-level = "debug"``), so that there is one list of settings and ``--help`` explains
it. A file is checked as a whole: every fault is reported at once, with its line. This module must
never print the value of a secret.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from events.cli.bus_urls import bad_url
from events.errors import IsthmusError, Usage
from events.input_files import read_up_to
from events.subjects import check_label, check_node_name, check_site

ROLES: dict[str, tuple[str, ...]] = {
    "agent": ("agent", "run"),
    "controller": ("controller",),
    "issuer": ("credentials", "serve"),
    "up": ("up",),
}
"""Role → the path of its command below ``isthmus``."""

FILE_LIMIT_BYTES = 256 * 1024
_OTHER_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
MASK = "••••••"
_NOT_SETTINGS = {"help", "config", "as_json"}
_SECRET = re.compile(r"(token|password|secret|seed)$")
_KEY = re.compile(r"""^\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z0-9_-]+))\s*=""")


class Fault(NamedTuple):
    """One thing that is wrong. ``line`` 0: not of one line."""

    line: int
    message: str


class Setting(NamedTuple):
    """One setting with its value and where it came from; a secret's value is masked already."""

    name: str
    value: Any
    source: str


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Name of the setting → the option that defines it, in the order of ``--help``."""
    return {
        key_of(option): option
        for option in command.params
        if isinstance(option, click.Option) and option.name not in _NOT_SETTINGS and not option.is_eager
    }


def key_of(option: click.Option) -> str:
    """The setting's name: the longest flag without its dashes."""
    return max(option.opts, key=len).lstrip("-")


def is_secret(key: str) -> bool:
    """Whether the value itself is one (a file's name is none)."""
    return _SECRET.search(key) is not None


# --- reading -----------------------------------------------------------------------------------------


def lines_of(text: str) -> dict[str, int]:
    """Key → the line where it is set. Follows arrays and multi-line strings; for keys of the top level."""
    found: dict[str, int] = {}
    closing, depth = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        if closing:
            _, mark, rest = line.partition(closing)
            if not mark:
                continue
            closing = ""
        elif depth == 0:
            key = _KEY.match(line)
            if key:
                found.setdefault(key[1] or key[2] or key[3], number)
        closing, change = _open_ends(rest)
        depth = max(0, depth + change)
    return found


def _open_ends(line: str) -> tuple[str, int]:
    """The multi-line string that begins in the line without ending, and by how much brackets open."""
    depth, position = 0, 0
    while position < len(line):
        for mark in ('"""', "'''", '"', "'"):
            if line.startswith(mark, position):
                end = line.find(mark, position + len(mark))
                while mark[0] == '"' and end > 0 and line[end - 1] == "\\":
                    end = line.find(mark, end + 1)
                if end < 0:
                    return (mark, depth) if len(mark) == 3 else ("", depth)
                position = end + len(mark)
                break
        else:
            if line[position] == "#":
                break
            depth += {"[": 1, "]": -1}.get(line[position], 0)
            position += 1
    return "", depth


def read(text: str, command: click.Command) -> tuple[dict[str, Any], list[Fault]]:
    """The values of a file by parameter name (for click's ``default_map``), and everything wrong with it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+)", str(error))
        # Without a place the text ended too early: in its last line.
        line = int(place[1]) if place else max(1, len(text.splitlines()))
        return {}, [Fault(line, f"no TOML: {str(error).partition(' (at line')[0]}")]
    except RecursionError:
        return {}, [Fault(0, "no TOML: nested too deeply")]
    lines, options = lines_of(text), options_of(command)
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    for key, value in document.items():
        line = lines.get(key, 0)
        option = options.get(key)
        if option is None:
            faults.append(Fault(line, _unknown(key, options)))
            continue
        try:
            values[str(option.name)] = _value(key, value, option)
        except (click.ClickException, IsthmusError) as error:
            faults.append(Fault(line, f"{key}: {error.message}"))
    faults += [
        Fault(lines.get(key, 0), message) for key, message in cross_checks(values, options) if key in document
    ]
    return values, sorted(faults)


def _unknown(key: str, options: dict[str, click.Option]) -> str:
    near = difflib.get_close_matches(key.replace("_", "-"), options, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(options)}"
    return f"there is no setting {key[:80]!r}; {hint}"


def _value(key: str, value: Any, option: click.Option) -> Any:
    """The value as the option takes it. Raises BadParameter or IsthmusError, never naming a secret."""
    many = option.multiple or option.nargs != 1
    items = value if isinstance(value, list) and many else [value]
    if isinstance(value, list) and not many:
        if key != "bus":
            raise click.BadParameter("takes one value, not an array")
        items = [",".join(str(item) for item in value)]
    if not isinstance(value, list) and many:
        raise click.BadParameter("takes an array")
    result = [_scalar(key, item, option) for item in items]
    return result if many else result[0]


def _scalar(key: str, value: Any, option: click.Option) -> Any:
    if isinstance(value, dict | list | date | time):
        raise click.BadParameter("takes a plain value, not a table, an array in an array, or a date")
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.BadParameter("is true or false")
        return value
    if isinstance(value, bool):
        raise click.BadParameter("takes no true or false")
    text = isinstance(option.type, click.types.StringParamType | click.Choice | click.Path | click.File)
    choice = isinstance(option.type, click.Choice)
    if text and not isinstance(value, str) and not choice:
        raise click.BadParameter("takes a text in quotes")
    number = isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
    if number and isinstance(value, str):
        raise click.BadParameter("takes a number, without quotes")
    try:
        option.type.convert(str(value), option, None)
    except click.BadParameter as error:
        raise click.BadParameter("has a wrong value" if is_secret(key) else error.message) from None
    return str(value) if choice else value


def cross_checks(values: dict[str, Any], options: dict[str, click.Option]) -> Iterator[tuple[str, str]]:
    """What one setting alone cannot tell: ``(key, message)`` for each fault."""
    cluster, bus, creds = values.get("cluster"), values.get("bus"), values.get("creds")
    if cluster is not None:
        try:
            check_label(str(cluster), "cluster")
        except IsthmusError as error:
            yield "cluster", f"cluster: {error.message}"
    if "node" in values:
        try:
            check_node_name(str(values["node"]))
        except IsthmusError as error:
            yield "node", f"node: {error.message}"
    try:
        check_site(str(values.get("site", "")))
    except IsthmusError as error:
        yield "site", error.message
    for url in str(bus).split(",") if bus else ():
        fault = _bad_url(url.strip())
        if fault:
            yield "bus", f"bus: {fault}"
    for name in ("creds", "ca", "tls_cert", "tls_key"):
        path = values.get(name)
        if path and not Path(str(path)).is_file():
            yield name.replace("_", "-"), f"{name.replace('_', '-')}: there is no file {path}"
    for name in ("creds", "tls_key"):
        path = values.get(name)
        if path and Path(str(path)).is_file() and Path(str(path)).stat().st_mode & 0o077:
            yield (
                name.replace("_", "-"),
                f"{name.replace('_', '-')}: {path} can be read by others: chmod 600 {path}",
            )
    if bool(values.get("tls_cert")) != bool(values.get("tls_key")) and "tls-cert" in options:
        key = "tls-cert" if values.get("tls_cert") else "tls-key"
        yield key, "tls-cert and tls-key belong together"
    if creds and bus and "nats://" in str(bus).lower() and not values.get("ca") and not _local(str(bus)):
        yield "creds", "creds: without TLS (tls:// and ca) everybody on the way reads along"


def _bad_url(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"nats://{url}") if not bad_url(url) else None
    if parts is not None and (parts.password or parts.username):
        return "a password in a URL shows up in process lists: use creds"
    return bad_url(url)


def _local(bus: str) -> bool:
    return all(
        (urlsplit(url.strip()).hostname or "") in {"127.0.0.1", "localhost", "::1"} for url in bus.split(",")
    )


def refuse(faults: Sequence[Fault], source: str) -> Usage:
    """One error with every fault and its line."""
    lines = [
        f"  line {fault.line}: {fault.message}" if fault.line else f"  {fault.message}" for fault in faults
    ]
    count = f"{len(faults)} faults" if len(faults) > 1 else "one fault"
    return Usage(
        "config_invalid",
        f"{source} has {count}:\n" + "\n".join(lines),
        faults=[{"line": fault.line, "message": fault.message} for fault in faults],
        source=source,
    )


def load(path: Path, command: click.Command) -> dict[str, Any]:
    """Read and check a file. Raises Usage(config_invalid) with all faults."""
    try:
        raw = read_up_to(path, FILE_LIMIT_BYTES + 1)
        other = next((name for mark, name in _OTHER_ENCODINGS if raw.startswith(mark)), "")
        if other:
            raise refuse([Fault(1, f"it is {other} text; save it as UTF-8")], str(path))
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise refuse([Fault(0, f"it cannot be read: {error.strerror}")], str(path)) from error
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise refuse([Fault(line, "no UTF-8 text")], str(path)) from error
    if len(raw) > FILE_LIMIT_BYTES:
        raise refuse([Fault(0, f"it is larger than {FILE_LIMIT_BYTES:,} bytes")], str(path))
    values, faults = read(text, command)
    if faults:
        raise refuse(faults, str(path))
    return values


# --- commands ----------------------------------------------------------------------------------------


def add_config(command: click.Command, role: str) -> click.Command:
    """Give a command the option ``--config``; idempotent."""
    if any(param.name == "config" for param in command.params):
        return command

    def take(ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
        if value is not None:
            ctx.default_map = {**load(value, command), **(ctx.default_map or {})}

    command.params.insert(
        0,
        click.Option(
            ["--config"],
            envvar="ISTHMUS_CONFIG",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=take,
            help=f"TOML file with these settings (`isthmus config example {role}`); "
            "the environment and flags override it.",
        ),
    )
    return command


def effective(command: click.Command, file: Path | None, arguments: Sequence[str] = ()) -> list[Setting]:
    """Every setting as a run with this file, this environment and these flags would have it.

    Raises Usage(config_invalid), and click's errors for wrong flags.
    """
    values = load(file, command) if file else {}
    plain = click.Command(command.name, params=list(options_of(command).values()))
    context = plain.make_context(str(command.name), list(arguments), default_map=values)
    result = []
    for key, option in options_of(command).items():
        name = str(option.name)
        source = context.get_parameter_source(name)
        value = context.params.get(name)
        if is_secret(key) and value:
            value = MASK
        shown = {
            click.core.ParameterSource.COMMANDLINE: "flag",
            click.core.ParameterSource.ENVIRONMENT: f"environment {_variable(option)}",
            click.core.ParameterSource.DEFAULT_MAP: f"file {file}",
        }.get(source or click.core.ParameterSource.DEFAULT, "default")
        result.append(Setting(key, value, shown))
    return result


def _variable(option: click.Option) -> str:
    names = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or [])
    return next((name for name in names if name in os.environ), "")
