"""What a join writes on a node, as text: the agent's settings and its unit. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from events.bus.enrolment import JoinToken
from nodeagent.config import DEFAULT_STATE_DIR

MARK = "# Written by `isthmus join`; `isthmus leave` removes it."
"""First line of each file that a join writes. A file without it is somebody else's and is left alone."""

FOLDER = Path("/etc/isthmus")
UNIT = "isthmus-agent.service"
UNITS = Path(__file__).parents[1] / "systemd"
_EXECUTABLE = "/opt/isthmus/bin/isthmus"


def settings(
    token: JoinToken,
    *,
    credentials: str,
    ca: str,
    kind: str,
    site: str,
    underlay: str,
    state_dir: Path,
    nat: str = "auto",
    kept: Mapping[str, Any] | None = None,
) -> str:
    """The agent's configuration file. Every value is quoted as TOML quotes it.

    ``kept``: settings of before, which go on where the join says nothing.
    """
    values: list[tuple[str, str]] = [
        ("bus", ",".join(token.servers)),
        ("cluster", token.cluster),
        ("node", token.node),
        ("kind", kind),
        ("site", site),
        ("underlay", underlay),
        ("nat", nat if nat != "auto" else ""),
        ("creds", credentials),
        ("ca", ca),
        ("state-dir", str(state_dir)),
    ]
    said = {key for key, _ in values}
    more = [(key, value) for key, value in (kept or {}).items() if key not in said]
    lines = [
        MARK,
        *(f"{key} = {_quoted(value)}" for key, value in values if value),
        *(f"{key} = {_toml(value)}" for key, value in more),
    ]
    return "\n".join(lines) + "\n"


def leave_command(folder: Path, state_dir: Path, *more: str) -> str:
    """`isthmus leave` as it has to be typed where these are the folders."""
    usual = (("--folder", folder, FOLDER), ("--state-dir", state_dir, Path(DEFAULT_STATE_DIR)))
    words = [word for option, is_, was in usual if is_ != was for word in (option, str(is_))]
    return shlex.join(["isthmus", "leave", *more, "--yes", *words])


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(_toml(each) for each in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(value: str) -> str:
    # A TOML basic string takes the same escapes as JSON, except that DEL must be escaped, too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def unit(executable: Sequence[str], config: Path) -> str:
    """The shipped unit, with this machine's executable and configuration file."""
    shipped = (UNITS / UNIT).read_text()
    command = " ".join(_word(word) for word in executable)
    text = re.sub(
        rf"^ExecStart={re.escape(_EXECUTABLE)} agent run --config .*$",
        lambda _: f"ExecStart={command} agent run --config {_word(str(config))}",
        shipped,
        flags=re.MULTILINE,
    )
    return f"{MARK}\n{text}"


def _word(word: str) -> str:
    """One argument as systemd reads it (systemd.service(5), *Command lines*)."""
    if re.fullmatch(r"[A-Za-z0-9_./:@+,=-]+", word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
