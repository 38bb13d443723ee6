"""The one file that makes a node of a machine with only Python: installs, goes on after a broken try, says why.

Real environments, and pip from its wheel where it matters; what is installed is a small stand-in for Isthmus.
The real wheels, on a machine without anything else: ``isthmus lab --nat --bare FILE`` and ``make systemd``.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pip
import pytest

from deploy.join import alone

ISTHMUS = """
import sys

def main():
    print("isthmus, version 0.3.0" if "--version" in sys.argv else f"joined by {sys.argv[1:]}")
"""
INTERRUPTED = "import os, signal; os.kill(os.getppid(), signal.SIGINT); signal.pause()"
FAILING = "import sys; sys.exit('ERROR: the disk is full')"
PROGRAM = """
import os, sys
from pathlib import Path
from deploy.join import alone
os.geteuid = lambda: 0
archive, place, *sys.argv[1:] = sys.argv[1:]
run = alone.main
alone.main = lambda _, arguments: run(Path(archive), arguments, Path(place), Path(place).parent)
alone.run()
"""


def wheel(to: Path, name: str, files: dict[str, str]) -> Path:
    info, path = f"{name}-0.3.0.dist-info", to / f"{name}-0.3.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as packed:
        for file, text in files.items():
            packed.writestr(file, text)
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3.0\nProvides-Extra: agent\n",
        )
        packed.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{name} = {name}:main\n")
        packed.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Makes the file as the build does, with what is given instead of pip."""

    def make(stand_in: str = "") -> Path:
        found = tmp_path / "isthmus-0.3.0-node.pyz"
        with zipfile.ZipFile(found, "w") as packed:
            packed.write(wheel(tmp_path, "isthmus", {"isthmus.py": ISTHMUS}), "isthmus-0.3.0-py3-none-any.whl")
            packed.write(alone.__file__, "__main__.py")
            pips = tmp_path / "pip-0-py3-none-any.whl"
            with zipfile.ZipFile(pips, "w") as inner:
                if stand_in:
                    inner.writestr("pip/__main__.py", stand_in)
                else:
                    home = Path(pip.__file__).parent
                    for path in home.rglob("*"):
                        if path.is_file() and path.suffix != ".pyc":
                            inner.write(path, path.relative_to(home.parent))
            packed.write(pips, pips.name)
        return found

    return make


def run(archive: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    scratch = place.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(archive), str(place), *arguments],
        capture_output=True, text=True, check=False, timeout=300,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(scratch)},
    )  # fmt: skip


def test_a_broken_try_is_gone_over_and_what_is_there_stays(
    tmp_path: Path, archive: Callable[..., Path]
) -> None:
    place, made = tmp_path / "opt", archive()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    half = place / "lib" / version / "site-packages" / "isthmus-0.3.0.dist-info"
    half.mkdir(parents=True)  # pip takes this for an installed package, and could not replace it
    (half / "METADATA").write_text("Metadata-Version: 2.1\nName: isthmus\nVersion: 0.3.0\n")
    first = run(made, place, "--token-file", "t")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("✓ install"), first.stdout
    assert first.stdout.endswith(f"s  Isthmus 0.3.0 in {place}\njoined by ['join', '--token-file', 't']\n")
    assert (tmp_path / "isthmus").resolve() == (place / "bin" / "isthmus")
    assert not any((tmp_path / "scratch").iterdir())
    again = run(made, place, "t", "--json")
    assert (again.returncode, again.stdout, again.stderr) == (0, "joined by ['join', 't', '--json']\n", "")
    assert run(made, place, "t").stdout.startswith("= install")


def test_an_interrupt_leaves_nothing_but_what_is_gone_over(
    tmp_path: Path, archive: Callable[..., Path]
) -> None:
    ended = run(archive(INTERRUPTED), tmp_path / "opt", "t")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
    assert not any((tmp_path / "scratch").iterdir())
    assert not (tmp_path / "isthmus").is_symlink()


def test_what_cannot_be_installed_is_said_in_pips_own_words(
    tmp_path: Path, archive: Callable[..., Path]
) -> None:
    ended = run(archive(FAILING), tmp_path / "opt", "t")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("isthmus: pip ended with 1: ERROR: the disk is full. Nothing was joined; ")


def test_a_dry_run_an_old_python_and_other_accounts_change_nothing(
    tmp_path: Path,
    archive: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, place = archive(INTERRUPTED), tmp_path / "opt"

    def said(*arguments: str) -> tuple[int, str]:
        code = alone.main(made, list(arguments), place, tmp_path)
        return code, "".join(capsys.readouterr())

    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert said("t", "--dry-run")[0] == 0
    assert "Usage: python3 isthmus-0.3.0-node.pyz" in said("--help")[1]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert said("t") == (1, said("t")[1])
    assert "run it as root (sudo python3 isthmus-0.3.0-node.pyz …)" in said("t")[1]
    monkeypatch.setattr(alone, "MINIMUM", (99, 0))
    assert "needs Python 3.11 or newer" in said("t")[1]
    assert not place.exists()
