"""Run all benchmarks, print one table, write ``build/bench.json``.

    python -m tests.bench [NAME…] [--output FILE]     NAME: a part of a module's name, e.g. "agent"

Each module runs in a process of its own, so that neither memory nor caches leak from one into the
next. A row is ``{name, ours, baseline, unit, ratio, target, better, ok}``; ``ratio`` is ours divided
by baseline, ``target`` its bound: a floor when ``better`` is "higher", a ceiling when "lower", and
null where the number is only reported. Exit code 1 when a target is missed or a module fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEYS = ("name", "ours", "baseline", "unit", "ratio", "target", "better", "ok")
MODULE_LIMIT_S = 900
"""No benchmark may take longer: a hang must not hang ``make bench``."""


def _run_one(module: str) -> list[dict[str, Any]]:
    """Run one module in a fresh interpreter and read its rows. Raises RuntimeError with what it printed."""
    code = (
        "import importlib, json, sys; "
        f"rows = importlib.import_module('tests.bench.{module}').run(); "
        "sys.__stdout__.write('\\n' + json.dumps(rows) + '\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE.parent.parent,
        stdout=subprocess.PIPE,
        text=True,
        timeout=MODULE_LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{module} ended with {done.returncode}")
    rows: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    for row in rows:
        missing = [key for key in KEYS if key not in row]
        if missing:
            raise RuntimeError(f"{module}: row {row.get('name')!r} lacks {missing}")
    return rows


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", help="only modules whose name contains one of these")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    arguments = parser.parse_args()
    modules = sorted(path.stem for path in HERE.glob("bench_*.py"))
    if arguments.names:
        modules = [m for m in modules if any(name in m for name in arguments.names)]
    if not modules:
        parser.error(f"no benchmark matches {arguments.names}")

    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for module in modules:
        started = time.perf_counter()
        print(f"{module} …", file=sys.stderr, flush=True)
        try:
            rows += _run_one(module)
        except (RuntimeError, subprocess.TimeoutExpired, json.JSONDecodeError, IndexError) as error:
            failed.append(module)
            print(f"{module} failed: {error}", file=sys.stderr)
        print(f"{module} took {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)

    from events.cli.tables import print_table

    print_table(
        ("benchmark", "ours", "baseline", "unit", "ratio", "target", ""),
        [
            (
                row["name"],
                _number(row["ours"]),
                _number(row["baseline"]),
                row["unit"],
                _number(row["ratio"]),
                "–"
                if row["target"] is None
                else f"{'≥' if row['better'] == 'higher' else '≤'} {_number(row['target'])}",
                "ok" if row["ok"] else "MISSED",
            )
            for row in rows
        ],
        right=("ours", "baseline", "ratio", "target"),
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    missed = [row["name"] for row in rows if not row["ok"]]
    print(f"{len(rows)} rows, {len(missed)} missed, {len(failed)} modules failed; wrote {arguments.output}")
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main())
