"""Long fuzzing with coverage guidance: ``python -m tests.fuzz [TARGET …] [--seconds N]``.

Uses atheris; each target runs in a process of its own with a memory limit, its corpus is kept in
build/fuzz/, and an input that crashes it is saved there. Exit 1 when any target has a finding.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RSS_MAX_MB = 1024
INPUT_MAX_BYTES = 64 * 1024
INPUT_TIMEOUT_S = 10


def one(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(
        include=[
            "events",
            "controlplane.controller.requests",
            "deploy.credentials",
            "replay.archive",
            "nodeagent",
        ]
    ):
        from tests.fuzz.targets import TARGETS, attempt

    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *arguments], lambda data: attempt(target, data))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    known, rest = parser.parse_known_args()
    if known.one:
        one(known.one, rest)
        return 0
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in known.targets or TARGETS:
        folder = Path("build/fuzz") / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, sample in enumerate(TARGETS[name].samples + TARGETS[name].foreign):
            (folder / f"sample-{number}").write_bytes(sample)
        command = [
            sys.executable, "-m", "tests.fuzz", "--one", name, str(folder),
            f"-max_total_time={known.seconds}", f"-max_len={INPUT_MAX_BYTES}", f"-rss_limit_mb={RSS_MAX_MB}",
            f"-timeout={INPUT_TIMEOUT_S}", f"-artifact_prefix={folder}/crash-", "-print_final_stats=1",
            "-verbosity=0",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = next((l.split()[-1] for l in done.stderr.splitlines() if "number_of_executed_units" in l), "?")
        print(f"{name:<14} {'ok' if done.returncode == 0 else 'FINDING':<8} {runs} inputs")
        if done.returncode:
            failed.append(name)
            print(done.stdout[-3000:], done.stderr[-3000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
