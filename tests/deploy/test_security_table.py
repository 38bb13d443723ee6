"""Every proof that SECURITY.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "deploy" / "SECURITY.md").read_text()
ROWS = [line.split("|")[1:-1] for line in TABLE.splitlines() if line.startswith("| ") and "---" not in line][1:]


def test_each_row_names_tests_that_exist() -> None:
    own = "".join(file.read_text() for file in (ROOT / "tests" / "security").glob("test_*.py"))
    assert len(ROWS) > 20
    for *_, proof in ROWS:
        names = re.findall(r"`([^`]+)`", proof)
        assert names, proof
        for name in names:
            path, _, test = name.rpartition("::") if "::" in name else (name, "", "")
            if path.startswith((".ci", "tests/")):
                assert (ROOT / path).exists(), name
                if test:
                    assert f"def {test}" in (ROOT / path).read_text(), name
            elif name.startswith("make "):
                assert re.search(rf"^{name.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), name
            else:
                assert f"def {test}(" in own, name


def test_every_security_test_is_in_the_table() -> None:
    for file in (ROOT / "tests" / "security").glob("test_hostile*.py"):
        for name in re.findall(r"def (test_\w+)", file.read_text()):
            if name in {"test_an_agent_can_do_what_it_needs", "test_a_name_with_dots_has_credentials_that_fit"}:
                continue  # counter-proofs
            assert name in TABLE, name
