"""One file per role, all faults at once with their lines, and flags before environment before file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.cli.config import MASK, ROLES, add_config, effective, lines_of, load, options_of, read
from events.cli.config_command import command_of, example_text
from events.errors import Usage


@click.command()
@click.option("--bus", envvar="T_BUS")
@click.option("--cluster", envvar="T_CLUSTER", default="default")
@click.option("--count", type=click.IntRange(1, 9), default=3, envvar="T_COUNT")
@click.option("--mode", type=click.Choice(["a", "b"]))
@click.option("--fast/--slow", default=True)
@click.option("--tag", multiple=True)
@click.option("--http-token", envvar="T_TOKEN", help="Secret.")
@click.option("--creds")
@click.option("--tls-cert")
@click.option("--tls-key")
@click.option("--json", "as_json", is_flag=True)
def sample(**values: Any) -> None:
    """Prints what it was called with."""
    click.echo(json.dumps(values, default=list))


add_config(sample, "agent")


def faults(text: str) -> list[tuple[int, str]]:
    return [(fault.line, fault.message) for fault in read(text, sample)[1]]


def test_every_fault_is_told_at_once_with_its_line() -> None:
    text = (
        '\n# a comment\nclustr = "x"\ncount = 99\nmode = "c"\nfast = "yes"\n\ntag = "one"\nbus = "http://x"\n'
    )
    found = faults(text)
    assert [line for line, _ in found] == [3, 4, 5, 6, 8, 9]
    said = " ".join(message for _, message in found)
    for part in (
        "did you mean 'cluster'",
        "1<=x<=9",
        "'a', 'b'",
        "true or false",
        "takes an array",
        "nats, tls",
    ):
        assert part in said, part


def test_a_line_is_found_behind_arrays_and_long_strings() -> None:
    text = 'tag = [\n "cluster = 1", # ]\n "b",\n]\nhttp-token = """\ncluster = no\n"""\n'
    text += 'cluster = "UP"\nnope = 1\n'
    assert lines_of(text) == {"tag": 1, "http-token": 5, "cluster": 8, "nope": 9}
    assert [line for line, _ in faults(text)] == [8, 9]


def test_a_syntax_fault_has_its_line() -> None:
    assert faults('cluster = "a"\ncount = = 3\n')[0][0] == 2
    assert faults('cluster = "a"\ntag = [\n')[0] == (2, "no TOML: Invalid value (at end of document)")


def test_a_nodes_name_is_checked_with_the_rest() -> None:
    found = read('buss = "x"\nnode = "A B"\n', command_of("agent"))[1]
    assert [fault.line for fault in found] == [1, 2]
    assert "node name 'A B'" in found[1].message


def test_related_settings_are_checked_together(tmp_path: Path) -> None:
    creds = tmp_path / "node.creds"
    creds.write_text("x")
    creds.chmod(0o644)
    found = faults(f'creds = "{creds}"\ntls-cert = "{creds}"\nbus = "nats://10.0.0.1:4222"\n')
    said = " ".join(message for _, message in found)
    assert "chmod 600" in said
    assert "belong together" in said
    assert "without TLS" in said
    assert faults('bus = "tls://user:geheim@h:1"\n')[0][0] == 1
    assert "geheim" not in str(faults('bus = "tls://user:geheim@h:1"\n'))


@pytest.mark.parametrize(
    ("file", "environment", "flags", "expected"),
    [
        ("", {}, [], ("default", "default")),
        ('cluster = "file"', {}, [], ("file", "file")),
        ('cluster = "file"', {"T_CLUSTER": "env"}, [], ("env", "environment T_CLUSTER")),
        ('cluster = "file"', {"T_CLUSTER": "env"}, ["--cluster", "flag"], ("flag", "flag")),
    ],
)
def test_flags_go_before_the_environment_before_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    environment: dict[str, str],
    flags: list[str],
    expected: tuple[str, str],
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    row = next(row for row in effective(sample, path, flags) if row.name == "cluster")
    assert row.value == expected[0]
    assert row.source.startswith(expected[1])
    from click.testing import CliRunner

    ran = CliRunner().invoke(sample, ["--config", str(path), *flags])
    assert json.loads(ran.output)["cluster"] == expected[0]


def test_secrets_are_masked_wherever_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    path.write_text('http-token = "hush-1"\n')
    for flags, environment in (([], None), (["--http-token", "hush-2"], None), ([], "hush-3")):
        if environment:
            monkeypatch.setenv("T_TOKEN", environment)
        rows = effective(sample, path, flags)
        assert next(row for row in rows if row.name == "http-token").value == MASK
        assert "hush" not in str(rows)
    assert "hush" not in str(faults('http-token = ["hush-4"]\nhttp-token2 = "hush-5"\n'))


@given(st.text(max_size=400))
def test_any_text_gives_values_or_faults(text: str) -> None:
    values, found = read(text, sample)
    assert isinstance(values, dict)
    for fault in found:
        assert 0 <= fault.line <= len(text.splitlines()) + 1


_keys = st.sampled_from([*options_of(sample), "other", "x y"])
_plain = st.characters(codec="utf-8", exclude_characters='"\\\x7f', min_codepoint=32)
_values = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters='"\\\x7f', min_codepoint=32), max_size=12).map(
        lambda s: f'"{s}"'
    ),
    st.integers(-(10**20), 10**20).map(str),
    st.booleans().map(lambda b: str(b).lower()),
    st.sampled_from(
        ["[]", "[1]", '["a", "b"]', "{}", "{a = 1}", "1979-05-27", "07:32:00", "nan", "1e400", "[[1]]"]
    ),
)


@given(st.dictionaries(_keys, _values, max_size=8))
def test_each_fault_names_the_line_of_its_key(document: dict[str, str]) -> None:
    text = "".join(f'"{key}" = {value}\n' for key, value in document.items())
    tomllib.loads(text)
    values, found = read(text, sample)
    keys = list(document)
    for fault in found:
        assert fault.line >= 1
        assert keys[fault.line - 1].split()[0] in fault.message or "belong together" in fault.message
    assert len(values) + len({fault.line for fault in found}) >= len(document)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_the_example_of_each_role_is_valid_and_complete(role: str, tmp_path: Path) -> None:
    text = example_text(role)
    command = command_of(role)
    path = tmp_path / f"{role}.toml"
    path.write_text(text)
    assert load(path, command) == {}
    for key, option in options_of(command).items():
        assert f"# {key} = " in text
        assert option.help, f"{role}: --{key} has no help"


def test_unreadable_files_are_faults(tmp_path: Path) -> None:
    big, binary = tmp_path / "big", tmp_path / "binary"
    big.write_text("# x\n" * 100_000)
    binary.write_bytes(b"a = 1\n\xff\n")
    for path, said in (
        (tmp_path / "none", "cannot be read"),
        (big, "larger than"),
        (binary, "line 2: no UTF-8"),
    ):
        with pytest.raises(Usage, match=said):
            load(path, sample)


def isthmus(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "isthmus", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_the_commands_check_show_and_run_with_a_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(f'bus = "nats://127.0.0.1:1"\ncluster = "prod"\ndata = "{tmp_path / "data"}"\n')
    bad.write_text('bus = "nats://127.0.0.1:1"\nclutser = "prod"\nreplicas = "two"\n')
    assert isthmus("config", "check", "controller", str(good)).returncode == 0
    refused = isthmus("config", "check", "controller", str(bad))
    assert refused.returncode == 2
    assert "line 2: there is no setting 'clutser'" in refused.stderr
    assert "line 3: replicas" in refused.stderr
    shown = isthmus("config", "show", "controller", "--file", str(good), "--json", ISTHMUS_CLUSTER="env")
    rows = {row["name"]: row for row in json.loads(shown.stdout)}
    assert (rows["cluster"]["value"], rows["bus"]["value"]) == ("env", "nats://127.0.0.1:1")
    ran = isthmus("controller", "--config", str(good))
    assert ran.returncode == 3
    assert "127.0.0.1:1" in ran.stderr
    assert isthmus("controller", "--config", str(bad)).returncode == 2
