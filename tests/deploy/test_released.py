"""What release 0.2.0 left on people's machines goes on working: its archives and its configuration files.

``released/0.2.0.isthmus`` was made by that release's ``replay sample``; ``released/0.2.0.answers.json`` holds
what that release answered about it, question by question. ``released/0.2.0/`` holds configuration
files with every setting that it knew. None of them is ever made anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from controlplane.cli.main import root

FOLDER = Path(__file__).parent / "released"
ARCHIVE = FOLDER / "0.2.0.isthmus"
ANSWERS: dict[str, Any] = json.loads((FOLDER / "0.2.0.answers.json").read_text())
VOLATILE = {"source", "began", "took_s", "program", "took_ms"}


def ask(words: str) -> Any:
    """The answer to ``isthmus replay WORDS --json`` about the archive: a document, or lines of them."""
    done = CliRunner().invoke(root, ["replay", *words.split(), "--archive", str(ARCHIVE), "--json"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else lines


def lacking(then: Any, now: Any, place: str = "") -> list[str]:
    """What was said then and is not said now; a field that came since is no difference."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            found
            for key, value in then.items()
            if key not in VOLATILE
            for found in (
                lacking(value, now[key], f"{place}.{key}") if key in now else [f"{place}.{key}: gone"]
            )
        ]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [
            found
            for index, pair in enumerate(zip(then, now, strict=True))
            for found in lacking(*pair, f"{place}[{index}]")
        ]
    return [] if then == now else [f"{place}: {then!r}, now {now!r}"]


@pytest.mark.parametrize("words", sorted(ANSWERS))
def test_an_archive_of_0_2_0_gives_the_answers_that_0_2_0_gave(words: str) -> None:
    assert lacking(ANSWERS[words], ask(words)) == []


def test_the_comparison_sees_a_changed_and_a_missing_field() -> None:
    assert lacking({"a": 1, "b": [1, 2]}, {"a": 2, "b": [1, 3], "c": 0}) == [".a: 1, now 2", ".b[1]: 2, now 3"]
    assert lacking({"a": 1}, {}) == [".a: gone"]


@pytest.mark.parametrize("file", sorted((FOLDER / "0.2.0").glob("*.toml")), ids=lambda file: file.stem)
def test_a_configuration_file_of_0_2_0_is_taken_without_a_fault(file: Path) -> None:
    done = CliRunner().invoke(root, ["config", "check", file.stem, str(file)])
    assert done.exit_code == 0, done.output
    assert "no fault" in done.output
