"""Options that several verbs of `isthmus agent` have."""

from __future__ import annotations

from pathlib import Path

import click

from nodeagent.config import DEFAULT_CNI_DIR, DEFAULT_DEVICE, DEFAULT_STATE_DIR

state_option = click.option(
    "--state-dir", envvar="ISTHMUS_STATE_DIR", type=click.Path(path_type=Path), default=DEFAULT_STATE_DIR,
    show_default=True, help="Where the agent keeps its uid, cache and status.",
)  # fmt: skip
cni_option = click.option(
    "--cni-dir", type=click.Path(path_type=Path), default=DEFAULT_CNI_DIR, show_default=True,
    help="Where the CNI configuration is.",
)  # fmt: skip
device_option = click.option(
    "--device", default=DEFAULT_DEVICE, show_default=True, help="Name of the tunnel device."
)
