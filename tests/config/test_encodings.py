"""Files as editors and other systems leave them: read, or refused by what is wrong with them."""

from __future__ import annotations

import codecs
from pathlib import Path

import click
import pytest

from events.cli.bus_urls import bus_servers
from events.cli.config import load
from events.cli.config_command import command_of
from events.errors import Usage

TEXT = 'bus = "nats://10.0.0.5:4222"\ncluster = "prod"\n'

READ = {
    "a byte order mark": codecs.BOM_UTF8 + TEXT.encode(),
    "Windows' line ends": TEXT.replace("\n", "\r\n").encode(),
    "a comma at the end of an array": b'bus = ["nats://a:1", "nats://b:1",]\ncluster = "prod"\n',
    "no line end": TEXT.rstrip().encode(),
    "nothing": b"",
    "a scheme in capitals": TEXT.replace("nats", "NATS").encode(),
}
REFUSED = {
    "UTF-16": (TEXT.encode("utf-16"), "UTF-16"),
    "UTF-16, the other way round": (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "UTF-16"),
    "UTF-32": (TEXT.encode("utf-32"), "UTF-32"),
    "Latin-1": ("# für\n".encode("latin-1") + TEXT.encode(), "line 1: no UTF-8"),
    "a NUL": (TEXT.encode() + b"\0\n", "line 3"),
    "an inline table's comma": (b'cluster = {name = "prod",}\n', "line 1"),
    "a JSON file": (b'{"cluster": "prod"}\n', "line 1"),
    "a YAML file": (b"cluster: prod\n", "line 1"),
    "a lone escape": (b'cluster = "\\ud800"\n', "line 1"),
    "another scheme": (b'bus = "http://10.0.0.5"\n', "the scheme is one of"),
    "a port beyond ports": (b'bus = "nats://10.0.0.5:99999"\n', "bus"),
    "nested without end": (b"cluster = " + b"[" * 5000, ""),
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_what_means_the_same_is_read(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "controller.toml"
    file.write_bytes(content)
    assert load(file, command_of("controller")).get("cluster") in {"prod", None}


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "controller.toml"
    file.write_bytes(content)
    with pytest.raises(Usage) as caught:
        load(file, command_of("controller"))
    assert caught.value.code == "config_invalid"
    assert said in caught.value.message
    assert "Traceback" not in caught.value.message


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(Usage, match="cannot be read"):
            load(path, command_of("controller"))


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nats://a:4222", ("nats://a:4222",)),
        ("NATS://a:4222,TLS://b", ("nats://a:4222", "tls://b")),
        (" a:4222 , b ", ("nats://a:4222", "nats://b")),
        ("nats://[2001:db8::1]:4222/", ("nats://[2001:db8::1]:4222/",)),
        ("wss://a/nats", ("wss://a/nats",)),
    ],
)
def test_spellings_of_the_bus(text: str, servers: tuple[str, ...]) -> None:
    assert bus_servers(text) == servers


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "http://a",
        "nats://",
        "nats://:4222",
        "nats://a:0",
        "nats://a:x",
        "nats://a b",
        "nats://[::1",
        "a\nb",
        "nats://ü",
        "nats://a/b",
    ],
)
def test_what_names_no_server_is_a_wrong_usage(text: str) -> None:
    with pytest.raises(Usage) as caught:
        bus_servers(text)
    assert "\n" not in caught.value.message


def test_a_password_in_an_address_is_never_repeated() -> None:
    with pytest.raises(Usage) as caught:
        bus_servers("nats://me:secret@a:99999")
    assert "secret" not in caught.value.message
    assert isinstance(command_of("up"), click.Command)
