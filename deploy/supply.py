"""The supply chain of an installation: what is in it, under which licences, and whether any is known to be bad.

``python -m deploy.supply sbom``      CycloneDX 1.5 JSON of the installed packages, with their hashes of record
``python -m deploy.supply licences``  every package's licence; exit 1 for one outside the list
``python -m deploy.supply check``     installed versions equal deploy/constraints.txt; vulnerabilities by
                                      pip-audit where it is installed and its data can be reached

Works off line; what cannot be done there is said, not passed over.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any

import click
import msgspec

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
ACCEPTED = re.compile(
    r"apache|mit\b|bsd|isc\b|psf|python software|mpl|mozilla|unlicense|zlib|0bsd|cc0|hpnd|public domain"
    # pyroute2 is dual-licensed, GPL-2.0-or-later or Apache-2.0; packages of the tests are not shipped.
    r"|gpl.*apache|apache.*gpl|lgpl",
    re.IGNORECASE,
)


def normal(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(root: str, extras: frozenset[str]) -> Iterator[Distribution]:
    """The distributions that an installation with these extras consists of, each once, sorted."""
    from packaging.requirements import Requirement

    found: dict[str, Distribution] = {}
    waiting = [(root, extras)]
    seen = set(waiting)
    while waiting:
        name, wanted = waiting.pop()
        try:
            package = distribution(name)
        except ModuleNotFoundError:
            continue  # not installed here: an extra that this machine does not have
        found[normal(name)] = package
        for text in package.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
                step = (normal(requirement.name), frozenset(requirement.extras))
                if step not in seen:
                    seen.add(step)
                    waiting.append(step)
    yield from (found[name] for name in sorted(found))


def licence(package: Distribution) -> str:
    """What the package says: the SPDX expression, else the classifiers, else the free text's first line."""
    meta = package.metadata
    for expression in meta.get_all("License-Expression") or ():
        return str(expression)
    classified = [c.split(" :: ")[-1] for c in meta.get_all("Classifier") or () if c.startswith("License ::")]
    if classified:
        return " OR ".join(classified)
    text = " ".join(str(line) for line in meta.get_all("License") or ())
    return (text.strip().splitlines() or ["unknown"])[0][:80]


def record_hash(package: Distribution) -> str:
    """SHA-256 of the package's RECORD, which itself lists the hash of every file."""
    return hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()


def bill(packages: list[Distribution]) -> dict[str, Any]:
    """CycloneDX 1.5; the same packages give the same bytes."""
    components = [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{normal(p.name)}@{p.version}",
            "name": p.name,
            "version": p.version,
            "purl": f"pkg:pypi/{normal(p.name)}@{p.version}",
            "hashes": [{"alg": "SHA-256", "content": record_hash(p)}],
            "licenses": [{"license": {"name": licence(p)}}],
        }
        for p in packages
        if normal(p.name) != "isthmus"
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "isthmus", "version": distribution("isthmus").version}
        },
        "components": components,
    }


def pinned() -> dict[str, str]:
    """Name → version of the constraints file."""
    lines = (line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    return {
        normal(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)
    }


def drift() -> list[str]:
    """Packages that are installed in another version than the pinned one."""
    pins = pinned()
    return [
        f"{p.name}: installed {p.version}, pinned {pins[normal(p.name)]}"
        for p in distributions()
        if normal(p.name) in pins and pins[normal(p.name)] != p.version
    ]


@click.group(help=__doc__)
def supply() -> None:
    """Of the environment that this runs in."""


extras_option = click.option(
    "--extras", default="agent,controller,console,bus,replay", show_default=True, help="Roles to count in."
)


@supply.command()
@extras_option
@click.option("--to", type=click.Path(path_type=Path), help="File to write [standard output].")
def sbom(extras: str, to: Path | None) -> None:
    """The bill of materials."""
    text = msgspec.json.format(msgspec.json.encode(bill(list(needed("isthmus", frozenset(extras.split(",")))))))
    if to is None:
        click.echo(text.decode())
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(text + b"\n")
    click.echo(f"{to}: {text.count(b'bom-ref')} packages")


@supply.command()
@extras_option
def licences(extras: str) -> None:
    """Every package and its licence."""
    foreign = []
    for package in needed("isthmus", frozenset(extras.split(","))):
        named = licence(package)
        fits = ACCEPTED.search(named) is not None
        click.echo(f"{'  ' if fits else '! '}{package.name:<40} {package.version:<14} {named}")
        if not fits:
            foreign.append(package.name)
    if foreign:
        click.echo(f"not accepted, look at them: {', '.join(foreign)}", err=True)
        sys.exit(1)


@supply.command()
def check() -> None:
    """Versions and vulnerabilities."""
    wrong = drift()
    for line in wrong:
        click.echo(line, err=True)
    click.echo(f"{len(pinned())} versions pinned, {len(wrong)} installed otherwise")
    if importlib.util.find_spec("pip_audit") is None:
        click.echo("vulnerabilities: not checked, pip-audit is not installed (pip install pip-audit)")
    else:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pip_audit",
                "--requirement",
                str(CONSTRAINTS),
                "--no-deps",
                "--timeout",
                "10",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if "ServiceError" in done.stderr or "ConnectionError" in done.stderr or "resolve" in done.stderr:
            click.echo("vulnerabilities: not checked, the data of pip-audit cannot be reached from here")
        else:
            click.echo(done.stdout + done.stderr)
            wrong += ["vulnerable"] if done.returncode else []
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    supply()
