"""What people and pipes see: every list at three widths and piped, and outputs that fail."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pkgutil import iter_modules

import pytest
import yaml

import controlplane.cli
import replay.cli
from controlplane.cli.main import root
from events.cli import tables
from tests import prepared
from tests.service.up import up
from tests.waiting import wait_for

pytestmark = pytest.mark.bus

MODULES = (
    *(f"controlplane.cli.{module.name}" for module in iter_modules(controlplane.cli.__path__)),
    *(f"replay.cli.{module.name}" for module in iter_modules(replay.cli.__path__)),
)
PROGRAM = str(Path(sys.executable).parent / "isthmus")
LONG = "rack-12.a-node-with-a-very-long-name-that-goes-on-and-on.shenzhen.example.com"
UID = "7d0f6a7e-4a55-4f3c-9d1b-0a1b2c3d4e5f"
NODES = f"""node,uid,kind,underlay,announced,site
n1,uid-1,cloud,10.0.1.1,,
n2,uid-2,cloud,10.0.1.2,,cloud-a
n10,uid-10,cloud,10.0.1.10,,cloud-a
{LONG},{UID},external,192.168.200.207,203.0.113.209,shenzhen-north
"""
LISTINGS: dict[str, list[str]] = {
    "nodes": ["node", "list"],
    "ranges": ["cluster", "ranges"],
    "networks": ["cluster", "network", "list"],
    "reservations": ["clb", "list"],
    "traces": ["trace", "list"],
}
PAGES = (
    ["replay", "log"],
    ["replay", "history", "node", LONG],
    ["replay", "history", "clb", "main"],
    ["replay", "explain", "node", "n10"],
    ["replay", "blame", "node", "n1"],
)
"""Tables with a heading, which a terminal shortens and ``-o wide`` does not."""
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A bus and a controller with four members and a reservation; the environment that leads there."""
    folder = tmp_path_factory.mktemp("terminal")
    plan = [
        "--cidr",
        "10.200.0.0/16",
        "--pods",
        "64",
        "--network",
        "vpc=10.0.0.0/16",
        "--unreachable-after",
        "3600",
    ]
    with up(folder, "--http", "off") as facts:
        environment = {**os.environ, "ISTHMUS_BUS": facts["bus"]}
        environment.pop("COLUMNS", None)
        environment.pop("NO_COLOR", None)
        (folder / "nodes.csv").write_text(NODES)
        for command in (
            ["cluster", "define", *plan, "--unreachable-after", "3600"],
            ["node", "import", str(folder / "nodes.csv")],
            ["clb", "reserve", "main", "--subnet", "10.0.8.0/28"],
        ):
            piped(environment, *command)
        yield environment


def piped(environment: dict[str, str], *arguments: str, code: int = 0) -> str:
    done = prepared.typed(arguments, modules=MODULES, env=environment)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "[internal]" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def on_terminal(environment: dict[str, str], columns: int, *arguments: str) -> str:
    """What a terminal of that width is sent."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen(
        [PROGRAM, *arguments], env={**environment, "TERM": "xterm"}, stdout=theirs, stdin=theirs, stderr=theirs
    ) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not chunk:
                break
            shown += chunk
        child.wait(60)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


@pytest.fixture
def here(
    cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a command in this process, as into a pipe, or as on a terminal of so many columns."""
    monkeypatch.setenv("ISTHMUS_BUS", cluster["ISTHMUS_BUS"])

    def run(*arguments: str, columns: int = 0) -> str:
        monkeypatch.setattr(tables, "on_terminal", lambda: columns > 0)
        monkeypatch.setenv("COLUMNS", str(columns or 20))
        root.main(list(arguments), standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_a_pipe_gets_plain_columns(here: Callable[..., str], listing: list[str]) -> None:
    text = here(*listing)
    assert "\x1b" not in text
    assert "…" not in text
    head, *body = rows(text)
    assert body
    assert {len(row) for row in body} == {len(head)}, "every row has every column"
    assert head == [name.upper() for name in head]
    assert len(rows(here(*listing, "--no-headers"))) >= len(body)


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_a_terminal_gets_one_line_a_row_and_nothing_that_matters_is_cut(
    here: Callable[..., str], listing: list[str]
) -> None:
    everything = set(here(*listing, "-o", "wide").split())
    for columns in (60, 80, 120):
        lines = [line for line in ANSI.sub("", here(*listing, columns=columns)).splitlines() if line]
        for line in lines:
            for word in line.split():
                if word.endswith("…"):
                    assert not re.match(r"\d+\.|[0-9a-f]{8}-", word), (
                        "an address or a uid is whole or not there"
                    )
                elif re.match(r"\d+\.\d+\.", word):
                    assert word in everything or word == "…"
        assert max(map(len, lines)) <= max(columns, 61), "one row, one line"  # 61: the longest addresses


@pytest.mark.parametrize("page", PAGES, ids=" ".join)
def test_a_page_shortens_by_whole_words(here: Callable[..., str], page: list[str]) -> None:
    everything = {word for line in here(*page, "-o", "wide").splitlines() for word in line.split()}
    for columns in (80, 120):
        lines = ANSI.sub("", here(*page, columns=columns)).splitlines()
        table = [line for line in lines if re.match(r" *\d+   ", line)]
        assert max(map(len, table), default=0) <= max(columns, 100 if page[1] == "blame" else 0)
        for word in {word for line in table for word in line.split()} - everything - {"…"}:
            assert LONG.startswith(word.removesuffix("…")), "only a name may be cut"
    assert "…" not in here(*page)


@pytest.mark.parametrize("listing", LISTINGS.values(), ids=LISTINGS)
def test_a_list_sorts_by_each_of_its_columns(here: Callable[..., str], listing: list[str]) -> None:
    head = rows(here(*listing, "-o", "wide"))[0]
    assert len(set(head)) == len(head), "two columns of one name cannot both be sorted by"
    body: list[list[str]] = []
    sorted_: list[list[str]] = []

    def nothing_came_meanwhile(name: str) -> bool:
        """Of a trace further spans may be stored between two questions."""
        plain = [*listing, "-o", "wide", "--no-headers"]
        body[:] = rows(here(*plain))
        sorted_[:] = rows(here(*plain, "--sort-by", name.lower().replace(" ", "-")))
        return body == rows(here(*plain))

    for name in head:
        wait_for(partial(nothing_came_meanwhile, name), f"{listing} stays as it is")
        assert sorted(sorted_) == sorted(body)
        column = [row[head.index(name)] for row in sorted_]
        assert column == sorted(column, key=tables._natural)


def test_a_real_terminal(cluster: dict[str, str]) -> None:
    lines = ANSI.sub("", on_terminal(cluster, 100, "node", "list")).splitlines()
    assert any(line.startswith("NODE ") for line in lines)
    assert max(map(len, lines)) <= 100
    assert any(line.startswith("rack-12.") and "192.168.200.207" in line for line in lines)


def test_awk_finds_the_same_column_in_every_row(cluster: dict[str, str]) -> None:
    table = [line.split() for line in piped(cluster, "node", "list", "--no-headers").splitlines()]
    assert {row[1] for row in table} == {"cloud", "external"}
    assert {row[2] for row in table} == {"-", "cloud-a", "shenzhen-north"}
    assert all(row[3].endswith("/26") for row in table)
    assert {row[6] for row in table} == {"never-reported"}
    assert {row[8] for row in table} == {"-"}


def test_the_other_forms_of_a_list(cluster: dict[str, str]) -> None:
    assert piped(cluster, "node", "list", "-o", "name", "--sort-by", "node").split() == [
        "n1",
        "n2",
        "n10",
        LONG,
    ]
    wide = piped(cluster, "node", "list", "-o", "wide")
    assert UID in wide
    assert "203.0.113.209" in wide
    as_json = json.loads(piped(cluster, "node", "list", "--json"))
    assert [n["node"] for n in as_json["nodes"]] == [
        n["node"] for n in yaml.safe_load(piped(cluster, "node", "list", "-o", "yaml"))["nodes"]
    ]
    assert [n["uid"] for n in json.loads(piped(cluster, "node", "list", "-o", "json"))["nodes"]][-1] == UID
    by_address = piped(cluster, "node", "list", "--no-headers", "--sort-by", "underlay").splitlines()
    assert [line.split()[0] for line in by_address] == ["n1", "n2", "n10", LONG]
    piped(cluster, "node", "list", "--sort-by", "weather", code=2)


def test_a_member_that_never_reported_has_no_last_report(cluster: dict[str, str]) -> None:
    shown = [line.split(None, 2) for line in piped(cluster, "node", "show", "n1").splitlines()]
    assert ["last", "report:", "never"] in shown


def test_a_tail_that_shows_nothing_says_why(cluster: dict[str, str]) -> None:
    for arguments in (["--from", "6,121"], ["--type", "weather."]):
        done = subprocess.run(
            [PROGRAM, "events", "tail", *arguments], env=cluster, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "")
        assert "the log ends at event" in done.stderr
    piped(cluster, "trace", "list", "--limit", "-1", code=2)


def test_colours_are_for_terminals_that_want_them(cluster: dict[str, str]) -> None:
    assert "\x1b[1m" in on_terminal(cluster, 120, "node", "list")
    assert "\x1b[1m" not in on_terminal({**cluster, "NO_COLOR": "1"}, 120, "node", "list")


def test_status_says_all_in_one_look_and_by_its_exit_code(cluster: dict[str, str]) -> None:
    found = json.loads(piped(cluster, "status", "--json"))
    assert (found["healthy"], found["nodes"], found["agents"]) == (True, 4, {"unreported": 4})
    text = piped(cluster, "status")
    for part in ("0 of 4 up (4 never reported)", "log:", "CLB main:", "free of 1,020", "leads"):
        assert part in text
    piped(cluster, "status", "--bus", "nats://127.0.0.1:1", code=3)


def test_what_cannot_be_undone_is_refused_where_nobody_can_be_asked(
    cluster: dict[str, str],
) -> None:
    piped(cluster, "node", "fence", "n2", code=2)
    assert "n2" in piped(cluster, "node", "list", "-o", "name").split()
    assert "node.fenced" in piped(cluster, "node", "fence", "n2", "--dry-run")


def test_spellings_of_the_bus(cluster: dict[str, str], here: Callable[..., str]) -> None:
    address = cluster["ISTHMUS_BUS"].removeprefix("nats://")
    for spelling in (f"NATS://{address}", address, f" nats://{address} ,", f"nats://{address}/"):
        assert here("node", "list", "--bus", spelling)


COMMANDS = (["node", "list"], ["events", "tail"], ["--help"])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_outputs_that_fail(cluster: dict[str, str], command: list[str]) -> None:
    line = f"{PROGRAM} {' '.join(command)}"

    def shell(text: str, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", text],
            env={**cluster, **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "[internal]" not in done.stderr, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert "Exception ignored" not in done.stderr, done.stderr
        return done

    assert shell(f"{line} >&-").returncode == 0
    assert shell(f"{line} >&- 2>&-").returncode == 0
    assert shell(f"set -o pipefail; {line} | true").returncode == 0
    full = shell(f"{line} > /dev/full")
    assert (full.returncode, "cannot be written" in full.stderr) == (1, True)
    assert shell(line, COLUMNS="").returncode == 0
    plain = shell(line, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert plain.returncode == 0
    assert plain.stdout.isascii()


@pytest.mark.parametrize("width", ["", "abc", "-3", "0", "99999999999999999999", "٣"])
def test_any_width_is_survived(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert tables.console().width == 120
