"""What ``isthmus deploy`` writes into files of other syntaxes is let in when it needs no quoting in any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.credentials.certificates import issue_server
from deploy.nats.secure import Server, check_host, environment
from events.errors import BadRequest, Usage

GOOD: dict[str, Any] = {
    "name": "bus-1", "shape": "cluster", "at": Path("/etc/isthmus/nats"), "data": Path("/var/lib/isthmus/nats"),
    "peers": ("bus-1", "10.0.0.6", "[2001:db8::1]:6222"),
}  # fmt: skip
BAD = [
    "a'b",
    'a"b',
    "a\nb",
    "a b\tc",
    "a$(id)",
    "a`id`",
    "a\\b",
    "a;b",
    "a\0b",
    "ä",
    "\ud800",
    "",
    "a{b}",
    "a#b",
]


def test_good_values_are_written() -> None:
    assert "ISTHMUS_SERVER_NAME='bus-1'\n" in environment(Server(**GOOD))


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("field", ["name", "listen", "monitor", "peers", "hub", "site", "at", "data"])
def test_what_a_file_would_misread_is_refused(field: str, value: str) -> None:
    if field == "site" and not value:
        return  # no site is named
    given: Any = {"peers": (value,), "hub": (value,), "at": Path(value), "data": Path(value)}.get(field, value)
    if field in {"at", "data"} and not value:
        return  # the folder itself
    with pytest.raises(Usage) as caught:
        Server(**{**GOOD, field: given})
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("value", BAD)
def test_a_host_of_a_certificate_is_a_host(value: str) -> None:
    with pytest.raises(Usage):
        check_host("--host", value)


@pytest.mark.parametrize("name", [*BAD, "../server", "a/b", "-x", "\x1b[31m"])
def test_a_certificate_is_written_under_a_name_that_is_a_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        issue_server(tmp_path, name, ["127.0.0.1"])
    assert not list(tmp_path.iterdir())
