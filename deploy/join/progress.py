"""The steps of a join or a leave: name, status, start, end, message.

The shape is that of the progress list of Tencent's registered nodes (``DescribeExternalNodeSupportConfig``),
so that a program that shows the one can show the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Literal

import msgspec

from events.errors import IsthmusError, Refused

Status = Literal["running", "done", "unchanged", "planned", "failed"]
"""``unchanged``: it was as it should be already. ``planned``: only said, since this is a dry run."""


class Step(msgspec.Struct, kw_only=True):
    """One step. Times are UTC; ``end`` is None while it runs."""

    name: str
    status: Status = "running"
    start: datetime
    end: datetime | None = None
    message: str = ""
    detail: tuple[str, ...] = ()

    def done(self, message: str, *detail: str) -> None:
        """Something was done."""
        self.status, self.message, self.detail = "done", message, detail

    def unchanged(self, message: str, *detail: str) -> None:
        """Nothing had to be done."""
        self.status, self.message, self.detail = "unchanged", message, detail

    def planned(self, message: str, *detail: str) -> None:
        """A dry run says what it would do."""
        self.status, self.message, self.detail = "planned", message, detail


class Progress:
    """Collects the steps, and hands each one on when it begins and when it ends."""

    def __init__(self, *, show: Callable[[Step], None] = lambda _: None) -> None:
        self.steps: list[Step] = []
        self._show = show

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """One step: failed with the error's message if it raises IsthmusError, which goes on upwards.

        A disk that is full or read-only (OSError) goes on as Refused(file_unusable).

        An interrupted step (cancellation, Ctrl-C) is failed, too; what it wrote is whole or not there.
        """
        step = Step(name=name, start=datetime.now(UTC))
        self.steps.append(step)
        self._show(step)
        try:
            yield step
        except IsthmusError as error:
            step.status, step.message = "failed", error.message
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            step.status, step.message = "failed", f"{where}{error.strerror or error}"
            raise Refused(
                "file_unusable",
                f"{name}: {step.message}. Nothing half was left; once that is mended, the same command goes on "
                f"from here",
            ) from error
        except BaseException:
            step.status, step.message = "failed", "interrupted"
            raise
        finally:
            step.end = datetime.now(UTC)
            self._show(step)
