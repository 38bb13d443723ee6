"""The set-up installs exact versions of everything that any role needs, and nothing twice."""

from __future__ import annotations

import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

HERE = Path(__file__).parent.parent.parent
PINS = [
    line for line in (HERE / "deploy" / "constraints.txt").read_text().splitlines() if not line.startswith("#")
]


def canonical(name: str) -> str:
    """PEP 503: one spelling per project."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_pin_is_an_exact_version_and_names_no_address() -> None:
    assert PINS
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+!]*", pin)] == []


def test_every_project_is_pinned_once() -> None:
    names = [canonical(pin.split("==")[0]) for pin in PINS]
    assert sorted(names) == sorted(set(names))


def test_every_dependency_of_every_role_is_pinned() -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {canonical(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in wanted} - {"isthmus"}
    assert names - {canonical(pin.split("==")[0]) for pin in PINS} == set()


def test_a_ready_checkout_is_left_alone_at_once() -> None:
    done = subprocess.run(
        ["bash", "deploy/setup.sh"], cwd=HERE, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    again = subprocess.run(
        ["bash", "deploy/setup.sh"], cwd=HERE, capture_output=True, text=True, timeout=60, check=False
    )
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_an_unsuitable_python_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "id"):
        found = subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True)
        (tools / name).symlink_to(found.stdout.strip())
    copy = tmp_path / "checkout"
    (copy / "deploy").mkdir(parents=True)
    # /usr/bin/python3 is tried last: the copy looks for it where it cannot be.
    script = (HERE / "deploy" / "setup.sh").read_text().replace("/usr/bin/python3", str(old))
    (copy / "deploy" / "setup.sh").write_text(script)
    done = subprocess.run(
        ["bash", str(copy / "deploy" / "setup.sh")], env={"PATH": f"{tmp_path}:{tools}"},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs Python 3.11 or newer; found: Python 3.9.2" in done.stderr
    assert "apt-get install" in done.stderr
