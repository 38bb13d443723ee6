"""The bill of materials is complete and repeatable; pins and licences hold for what is installed."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from click.testing import CliRunner

from deploy.supply import ACCEPTED, CONSTRAINTS, bill, drift, licence, needed, pinned, supply

ROLES = frozenset({"agent", "controller", "console", "bus", "replay"})


def test_the_bill_names_every_package_of_the_application_once(tmp_path: Path) -> None:
    packages = list(needed("isthmus", ROLES))
    first = json.dumps(bill(packages))
    assert first == json.dumps(bill(list(needed("isthmus", ROLES))))
    document = json.loads(first)
    purls = [component["purl"] for component in document["components"]]
    assert len(purls) == len(set(purls)) > 15
    for name in ("nats-py", "msgspec", "cryptography", "pyroute2", "aiosqlite"):
        assert f"pkg:pypi/{name}@{version(name)}" in purls
    assert "pkg:pypi/pytest@" not in first
    assert all(len(component["hashes"][0]["content"]) == 64 for component in document["components"])
    out = tmp_path / "sbom.json"
    assert CliRunner().invoke(supply, ["sbom", "--to", str(out)]).exit_code == 0
    assert json.loads(out.read_text())["specVersion"] == "1.5"


def test_every_package_of_the_application_is_pinned_and_its_licence_accepted() -> None:
    pins = pinned()
    for package in needed("isthmus", ROLES):
        name = package.name.lower().replace("_", "-").replace(".", "-")
        assert name in pins or name == "isthmus", name
        assert ACCEPTED.search(licence(package)), (name, licence(package))


def test_nothing_is_installed_in_another_version_than_pinned() -> None:
    assert drift() == []


def test_the_pins_name_no_address() -> None:
    text = CONSTRAINTS.read_text()
    assert "://" not in text
    assert "@" not in text
    assert all("==" in line for line in text.splitlines() if line and not line.startswith("#"))


def test_an_unacceptable_licence_would_be_noticed() -> None:
    for text in ("GPL-3.0-only", "AGPL-3.0", "Proprietary", "unknown"):
        assert not ACCEPTED.search(text)
