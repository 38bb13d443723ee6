"""Every command that the parser has, in surroundings that nobody wishes for.

Each case is a fork of one process that has loaded all commands: it sets up the surroundings, runs ``main`` as
the installed script does, and ends. What it says, and how it ends, is all that is judged.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import click

from controlplane.cli.main import main, root
from events import input_files

DEADLINE_S = 120.0
"""After which a command hangs, and is killed."""

RUNS_ON_S = 1.5
"""After which a command that runs until it is stopped is told to."""

BY_NAME = {
    "--subnet": "10.0.8.0/28",
    "--cidr": "10.200.0.0/16",
    "cidr": "10.9.0.0/16",
    "--ip": "10.200.0.2",
    "address": "10.200.0.2",
    "--host": "127.0.0.1",
    "--from": "1",
    "target": "10.0.0.9:6443",
    "--archive": "a.isthmus",
    "a": "1",
    "reference": "0" * 32,
    "--folder": "out",
    "-o": "out",
}
"""What is given for an argument or a required option; by its kind for all others."""


RUN_ON = {("agent", "run"), ("controller",), ("credentials", "serve"), ("lab",), ("up",)}
"""Commands that run until they are stopped."""


class Command(NamedTuple):
    """A command as typed: its words, and its words with everything that it requires."""

    path: tuple[str, ...]
    filled: tuple[str, ...]


class Ended(NamedTuple):
    """How a case ended: its exit code (negative: a signal), and what it wrote."""

    code: int
    said: str


def commands(
    command: click.Command = root, path: tuple[str, ...] = (), above: click.Context | None = None
) -> Iterator[Command]:
    """The parser's own list: every command that does something."""
    context = click.Context(command, info_name=path[-1] if path else "isthmus", parent=above)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name), context)
        if not command.invoke_without_command:
            return
    if path:
        yield Command(path, (*path, *_required(command)))


ODD_VALUES = ("", "-1", "nan", "9" * 30, "a\nb", "\x1b[2J", "é ", "/dev/null", "/", "../x;id", "[", "\udcff")


def odd_options(path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The command with each of its options once, for each odd value."""
    command: click.Command = root
    context = click.Context(command)
    for name in path:
        assert isinstance(command, click.Group)
        child = command.get_command(context, name)
        assert child is not None
        command = child
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_flag and option.name != "help":
            for value in ODD_VALUES:
                yield (*path, *_required(command), option.opts[-1], value)


def _required(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if not parameter.required:
            continue
        name = parameter.opts[0]
        if isinstance(parameter, click.Option):
            yield name
        kind = parameter.type
        if name in BY_NAME:
            yield BY_NAME[name]
        elif isinstance(kind, click.Choice):
            yield str(kind.choices[0])
        elif isinstance(kind, click.types.IntParamType):
            yield "443"
        elif isinstance(kind, click.Path):
            yield "file"
        else:
            yield "n1"


def _stream(number: int, path: str, flags: int) -> None:
    os.dup2(os.open(path, flags), number)


def _unread(number: int) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    os.dup2(theirs, number)


def _away() -> None:
    gone = Path("gone")
    gone.mkdir()
    os.chdir(gone)
    Path("../gone").rmdir()


def _set(**values: str) -> Callable[[], None]:
    def set_all() -> None:
        for name, value in values.items():
            os.environ[name] = value

    return set_all


def _file(variable: str, make: Callable[[Path], object]) -> Callable[[], None]:
    def point() -> None:
        make(Path("odd"))
        os.environ[variable] = "odd"

    return point


def _without(*names: str) -> Callable[[], None]:
    def remove() -> None:
        for name in names:
            os.environ.pop(name, None)

    return remove


def _limit(what: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (value, value))


HARMLESS = ("COLUMNS empty", "no HOME", "TZ odd", "TERM odd", "no such locale", "ASCII")
"""Of these a command takes no notice; they can be had together."""

SURROUNDINGS: dict[str, Callable[[], None]] = {
    "no stdin": lambda: os.close(0),
    "no stdout": lambda: os.close(1),
    "no stderr": lambda: os.close(2),
    "no streams": lambda: os.closerange(0, 3),
    "only stderr": lambda: os.closerange(0, 2),
    "full stdout": lambda: _stream(1, "/dev/full", os.O_WRONLY),
    "full stderr": lambda: _stream(2, "/dev/full", os.O_WRONLY),
    "both full": lambda: (_stream(1, "/dev/full", os.O_WRONLY), _stream(2, "/dev/full", os.O_WRONLY))[0],
    "unread stdout": lambda: _unread(1),
    "unread stderr": lambda: _unread(2),
    "stdout for reading": lambda: _stream(1, "/dev/null", os.O_RDONLY),
    "stdin for writing": lambda: _stream(0, "/dev/null", os.O_WRONLY),
    "stdin not text": lambda: _stream(0, "odd-bytes", os.O_RDONLY),
    "COLUMNS empty": _set(COLUMNS="", LINES=""),
    "COLUMNS 0": _set(COLUMNS="0"),
    "COLUMNS huge": _set(COLUMNS="9" * 30),
    "ASCII": _set(LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii"),
    "no locale": _without("LANG", "LC_ALL", "LC_CTYPE"),
    "no such locale": _set(LC_ALL="xx_YY.UTF-42", LANG="\udcff"),
    "no HOME": _without("HOME", "USER", "LOGNAME", "XDG_CONFIG_HOME"),
    "HOME empty": _set(HOME="", XDG_CONFIG_HOME="", TMPDIR=""),
    "HOME a file": _set(HOME="/dev/null", XDG_CONFIG_HOME="/dev/null", TMPDIR="/dev/null"),
    "nothing in the environment": os.environ.clear,
    "cwd removed": _away,
    "no PATH": _set(PATH=""),
    "TZ odd": _set(TZ="Mars/Olympus:\udcff"),
    "TERM odd": _set(TERM="\udcff", NO_COLOR="", FORCE_COLOR="1"),
    "bus none": _set(ISTHMUS_BUS=""),
    "bus nonsense": _set(ISTHMUS_BUS="nats://[::1", NATS_URL="\udcff"),
    "bus of another kind": _set(ISTHMUS_BUS="http://localhost:80"),
    "bus not text": _set(ISTHMUS_BUS="nats://\udcff:4222"),
    "cluster odd": _set(ISTHMUS_CLUSTER="a b\n\udcff"),
    "actor odd": _set(ISTHMUS_ACTOR="\udcff\x1b[2J"),
    "credentials a folder": _file("ISTHMUS_CREDS", Path.mkdir),
    "credentials a FIFO": _file("ISTHMUS_CREDS", os.mkfifo),
    "credentials binary": _file("ISTHMUS_CREDS", lambda path: path.write_bytes(bytes(range(256)))),
    "credentials empty": _file("ISTHMUS_CREDS", Path.touch),
    "authority nonsense": _file("ISTHMUS_CA", lambda path: path.write_bytes(b"\0" * 99)),
    "few files": _limit(resource.RLIMIT_NOFILE, 12),
    "no file may grow": _limit(resource.RLIMIT_FSIZE, 0),
    "options odd": _set(
        ISTHMUS_DEBUG="", OTEL_EXPORTER_OTLP_ENDPOINT="\udcff", OTEL_TRACES_SAMPLER="x", PYTHONUTF8="2"
    ),
}


class Case(NamedTuple):
    """A command line, and in what it runs."""

    arguments: tuple[str, ...]
    surrounding: str


class _Running(NamedTuple):
    case: Case
    child: int
    listening: int
    begun: float
    said: bytearray


def sweep(cases: Iterable[Case], at_once: int = 4) -> Iterator[tuple[Case, Ended]]:
    """Run each, in a folder of its own below ``HOME``, some at the same time; how each ended."""
    waiting = list(enumerate(cases))[::-1]
    running: list[_Running] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            number, case = waiting.pop()
            running.append(_start(case, Path(os.environ["HOME"]) / str(number)))
        select.select([one.listening for one in running], [], [], 0.02)
        for one in list(running):
            ended = _look(one)
            if ended is not None:
                running.remove(one)
                yield one.case, ended


def _start(case: Case, folder: Path) -> _Running:
    folder.mkdir()
    shutil.copy(folder.parent / "a.isthmus", folder)
    (folder / "odd-bytes").write_bytes(bytes(range(256)))
    (folder / "file").write_text("")
    listening, speaking = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(speaking, 1)
        os.dup2(speaking, 2)
        os.closerange(3, 256)
        os._exit(_ended_in(case))
    os.close(speaking)
    os.set_blocking(listening, False)
    return _Running(case, child, listening, time.monotonic(), bytearray())


def _look(one: _Running) -> Ended | None:
    """How it ended, if it has. One that runs on is told to stop."""
    done, status = os.waitpid(one.child, os.WNOHANG)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(one.listening, 1 << 16):
            one.said.extend(part)
    del one.said[: -(1 << 20)]
    if done:
        os.close(one.listening)
        return Ended(os.waitstatus_to_exitcode(status), one.said.decode(errors="replace"))
    waited = time.monotonic() - one.begun
    if waited > DEADLINE_S:
        os.kill(one.child, signal.SIGKILL)
    elif waited > RUNS_ON_S and _runs_on(one.case.arguments):
        os.kill(one.child, signal.SIGTERM)
    return None


def _runs_on(arguments: tuple[str, ...]) -> bool:
    return any(arguments[: len(path)] == path for path in RUN_ON)


def _ended_in(case: Case) -> int:
    """Run it, and what the interpreter does at an end; nothing of the process that was forked is unwound."""
    code: object = 120
    try:
        input_files.WRITER_S = 0.05
        for name in case.surrounding.split(" + "):
            SURROUNDINGS[name]()
        for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
            setattr(sys, name, _as_at_the_start(number, mode))
        time.tzset()
        sys.argv = ["isthmus", *case.arguments]
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    gc.collect()  # coroutines that nobody awaited say so
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)


def _as_at_the_start(number: int, mode: str) -> TextIO | None:
    try:
        os.fstat(number)
    except OSError:
        return None
    encoding = os.environ.get("PYTHONIOENCODING") or "utf-8"
    errors = "backslashreplace" if number == 2 else "strict"
    return open(number, mode, encoding=encoding, errors=errors, closefd=False)


BAD = re.compile(
    r"Traceback|\[internal\]|Exception ignored|Error in sys|never awaited|Fatal Python|^\w+Error:", re.MULTILINE
)


def wrong(case: Case, ended: Ended) -> str:
    """What is wrong with an end, in a word; empty when it is in order."""
    found = BAD.search(ended.said)
    if found:
        return found[0]
    if ended.code == -signal.SIGTERM and _runs_on(case.arguments):
        return ""  # stopped before it had begun
    return "" if ended.code in {0, 1, 2, 3, 130} else f"ends with {ended.code}"
