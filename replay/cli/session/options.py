"""The options that the replay commands share: where the log comes from, the time zone, a moment."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
import msgspec

from events.cli.options import BusContext, bus_options, suggesting

Function = TypeVar("Function", bound=Callable[..., Any])


class LogSource(msgspec.Struct, frozen=True, kw_only=True):
    """The options as given."""

    context: BusContext
    archives: tuple[str, ...]
    tz: str
    read_model: str


def source_options(function: Function) -> Function:
    """Add ``--archive``, the bus options, ``--tz``, ``--read-model``; the command gets ``source``."""

    @click.option(
        "--archive",
        "archives",
        multiple=True,
        metavar="FILE",
        envvar="ISTHMUS_ARCHIVE",
        help="Read this archive instead of the bus. Repeat for files that continue one another.",
    )
    @bus_options
    @click.option(
        "--tz",
        default="local",
        envvar="ISTHMUS_TZ",
        metavar="ZONE",
        help="Zone of times read and shown: local, UTC, +08:00, Asia/Shanghai [local].",
    )
    @click.option(
        "--read-model",
        default="",
        envvar="ISTHMUS_READ_MODEL",
        metavar="DIR",
        help="A controller's read model (its data directory), to answer as-of questions without folding.",
    )
    @wraps(function)
    def wrapper(
        *args: Any, archives: tuple[str, ...], context: BusContext, tz: str, read_model: str, **rest: Any
    ) -> Any:
        source = LogSource(context=context, archives=archives, tz=tz, read_model=read_model)
        return function(*args, source=source, **rest)

    return wrapper  # type: ignore[return-value]  # click's options change the call, not the name


class SuggestingChoice(click.Choice[str]):
    """A choice that names the nearest word when none fits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word, one of those that are known. Raises BadParameter."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(
                suggesting(error, str(value), self.choices, ctx).message, ctx=ctx, param=param
            ) from None


class TimesAsArguments(click.Command):
    """A command whose arguments are moments: ``-2h`` is one, not an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        takes = {
            name
            for param in self.params
            if isinstance(param, click.Option) and not param.is_flag and not param.count
            for name in param.opts
        }
        # With a blank before it, which no WHEN minds, it is no option to click.
        return super().parse_args(
            ctx,
            [
                f" {text}" if text[:1] == "-" and text[1:2].isdigit() and before not in takes else text
                for before, text in zip(["", *args], args, strict=False)
            ],
        )


def at_option(function: Function) -> Function:
    """Add ``--at WHEN``; the command receives ``at: str``."""
    return click.option(
        "--at", default="now", show_default=True, metavar="WHEN", help="The moment asked about."
    )(function)
