"""What the lab shows: stages, tables and checks as they come for a person, one JSON document for a program."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CheckFailedError, CommandFailedError
from events.errors import IsthmusError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console
    from rich.status import Status


@dataclass(slots=True)
class Check:
    """One check, passed or failed. `seconds` is how long it took."""

    name: str
    ok: bool
    detail: str
    seconds: float
    measured: dict[str, Any] = field(default_factory=dict)


class Report:
    """Collects checks and, with a console, shows them as they come."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._status: Status | None = None
        self.checks: list[Check] = []
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.notes: list[str] = []
        self._started = time.monotonic()

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def stage(self, name: str) -> Iterator[Check]:
        """One check: the block fills in `detail` and `measured`; what it raises makes the check fail.

        Only errors that a block of the lab may raise are caught: ours, a failed command, a missed
        deadline. A defect of the lab itself still ends it.
        """
        check = Check(name, ok=True, detail="", seconds=0.0)
        started = time.monotonic()
        if self._console is not None:
            self._status = self._console.status(name)
            self._status.start()
        try:
            yield check
        except (CheckFailedError, CommandFailedError, IsthmusError, TimeoutError) as error:
            check.ok = False
            check.detail = str(error) or type(error).__name__
        finally:
            if self._status is not None:
                self._status.stop()
                self._status = None
        check.seconds = time.monotonic() - started
        self.checks.append(check)
        self._show(check)

    def progress(self, text: str) -> None:
        """What is being done inside the present stage."""
        if self._status is not None:
            self._status.update(text)

    def _show(self, check: Check) -> None:
        if self._console is None:
            return
        from rich.text import Text

        mark = Text("✓ ", style="green") if check.ok else Text("✗ ", style="bold red")
        line = mark + Text(check.name, style="bold") + Text(f"  {check.seconds:.1f} s", style="dim")
        self._console.print(line, soft_wrap=True)
        for detail in check.detail.splitlines():
            self._console.print(Text(f"  {detail}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line that is neither a check nor a table."""
        self.notes.append(text)
        if self._console is not None:
            self._console.print(text, markup=False, soft_wrap=True)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        right: Sequence[str] = (),
        drop: Sequence[str] = (),
    ) -> None:
        """Shows a table; the JSON document carries it as one object per row.

        Where a terminal is too narrow the columns of ``drop`` go first, in that order.
        """
        cells = [list(row) for row in rows]
        self.tables[title] = [
            {column: str(cell) for column, cell in zip(columns, row, strict=True)} for row in cells
        ]
        if self._console is None:
            return
        from events.cli.tables import print_table

        if self._status is not None:  # what turns in the last line would run through the table
            self._status.stop()
        self._console.print()
        print_table(columns, cells, title=title, right=right, drop=drop)
        self._console.print()
        if self._status is not None:
            self._status.start()

    def summary(self, *, interrupted: bool = False) -> None:
        """The last line: how many checks held and how long it all took."""
        passed = sum(check.ok for check in self.checks)
        failed = len(self.checks) - passed
        if self._console is None:
            return
        if interrupted:
            self._console.print(f"\ninterrupted after {len(self.checks)} checks  ({self.seconds:.1f} s)")
        elif failed:
            text = f"\n{passed} of {passed + failed} checks passed, {failed} failed  ({self.seconds:.1f} s)"
            self._console.print(text, style="bold red")
        else:
            self._console.print(f"\nAll {passed} checks passed  ({self.seconds:.1f} s)", style="bold green")

    def document(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 3),
            "checks": [
                {
                    "name": check.name,
                    "ok": check.ok,
                    "detail": check.detail,
                    "seconds": round(check.seconds, 3),
                    "measured": check.measured,
                }
                for check in self.checks
            ],
            "tables": self.tables,
            "notes": self.notes,
        }
