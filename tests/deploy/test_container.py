"""What can be checked of the image without an engine: that its recipe is right about this tree.

test_image.py builds and runs it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy" / "container" / "Dockerfile").read_text()


def test_everything_that_is_copied_exists_and_is_let_through() -> None:
    ignored = (ROOT / "deploy" / "container" / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored, source


def test_every_package_of_ours_and_every_role_but_the_bus_is_in_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = set(re.findall(r"^COPY (\w+) \w+$", DOCKERFILE, re.MULTILINE))
    assert packages == copied
    extras = re.search(r"^ARG EXTRAS=([a-z,]+)$", DOCKERFILE, re.MULTILINE)
    assert extras
    assert set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])
    assert {"agent", "controller"} <= set(extras[1].split(","))


def test_it_is_rootless_pinned_and_reproducible() -> None:
    assert re.search(r"^USER 65532:65532$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.count("-c deploy/constraints.txt") == 2
    assert "SOURCE_DATE_EPOCH" in DOCKERFILE
    assert not re.search(r"^(ADD|RUN curl|RUN wget)", DOCKERFILE, re.MULTILINE)
    assert ":latest" not in DOCKERFILE
