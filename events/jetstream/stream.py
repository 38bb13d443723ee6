"""The settings of a cluster's streams: made when missing, checked when present, never changed silently.

A stream with other settings than these is refused: one that may delete, purge or age its messages
is not a log, and one without atomic batches would show half decisions.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client

from events import subjects
from events.bus.retry import pauses
from events.errors import IsthmusError, Refused, Unavailable
from events.jetstream.api import DEFAULT_PREFIX, STREAM_NOT_FOUND, ApiError, call

log = logging.getLogger("isthmus.log")

LEADERLESS_S = 12.0
"""Seconds without a leader after which a stream is made anew: an election takes 4 to 9."""

DUPLICATE_WINDOW_S = 120
"""How long the server recognises a repeated event id. Correctness does not rest on it (the expected
sequence and a look into the log do); it only makes the common repetition cheap."""


UNCOMPRESSED = "none"
"""The log is not compressed on disk. nats-server (seen with 2.15.1) appends raw records to the block that it
has compressed while cutting off a replica's unacknowledged end, and cannot read that block again: in a cluster
whose servers are killed again and again, one replica after the other is lost, and at last the log."""

TOLERATED = {"compression": frozenset({"s2"})}
"""Settings of earlier releases that an existing stream may keep; a controller warns of them."""


def event_stream_settings(cluster: str) -> dict[str, Any]:
    """The event stream's settings, without the number of replicas (design, section 3)."""
    return {
        "name": subjects.stream(cluster),
        "subjects": [subjects.events_wildcard(cluster)],
        "description": f"Isthmus: the events of cluster {cluster}. The only truth; never delete.",
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "compression": UNCOMPRESSED,
        "duplicate_window": DUPLICATE_WINDOW_S * 1_000_000_000,
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        "allow_direct": True,
        "allow_atomic": True,
        "republish": {"src": subjects.events_wildcard(cluster), "dest": subjects.live_wildcard(cluster)},
    }


def mirror_settings(settings: Mapping[str, Any], *, hub_domain: str) -> dict[str, Any]:
    """A site's mirror of a stream: the same name and sequences, in the site's own JetStream domain.

    ``settings`` are the stream's own; a mirror has no subjects and cannot take atomic batches.
    """
    unfit = {"subjects", "allow_atomic", "republish", "duplicate_window", "discard"}
    return {
        **{name: value for name, value in settings.items() if name not in unfit},
        "description": f"{settings['description']} Mirror of domain {hub_domain}.",
        "discard": "old",
        "mirror_direct": False,
        "mirror": {
            "name": settings["name"],
            "external": {"api": f"$JS.{hub_domain}.API", "deliver": ""},
        },
    }


def status_stream_settings(cluster: str) -> dict[str, Any]:
    """The last status per node, in memory: an observation that every agent soon repeats needs no disk."""
    return {
        "name": subjects.status_stream(cluster),
        "subjects": [subjects.status_wildcard(cluster)],
        "description": f"Isthmus: the last status of each node of cluster {cluster}.",
        "retention": "limits",
        "storage": "memory",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_age": 24 * 3600 * 1_000_000_000,
        "allow_direct": True,
    }


PODS_KEPT_DAYS, PODS_KEPT_PER_ADDRESS, PODS_KEPT_BYTES = 30, 64, 256 * 1024 * 1024
"""How long, how often and how much is kept of which pod had which address."""


def pods_stream_settings(cluster: str) -> dict[str, Any]:
    """Which pod had which address: on disk and bounded, apart from the log. An operator may edit the bounds."""
    return {
        "name": subjects.pods_stream(cluster),
        "subjects": [subjects.pods_wildcard(cluster)],
        "description": f"Isthmus: which pod had which address in cluster {cluster}. Not needed by anything.",
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs_per_subject": PODS_KEPT_PER_ADDRESS,
        "max_age": PODS_KEPT_DAYS * 24 * 3600 * 1_000_000_000,
        "max_bytes": PODS_KEPT_BYTES,
        "max_msg_size": 4096,
        "duplicate_window": DUPLICATE_WINDOW_S * 1_000_000_000,
        "allow_direct": True,
    }


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """``name: found X, needed Y`` for each setting that differs; the description may.

    The server omits settings that have their zero value.
    """
    return [
        f"{name}: found {found.get(name, _zero(value))!r}, needed {value!r}"
        for name, value in wanted.items()
        if name != "description"
        and not _same(name, value, found.get(name))
        and found.get(name) not in TOLERATED.get(name, ())
    ]


def _zero(value: Any) -> Any:
    zero: dict[type, Any] = {bool: False, int: 0, str: "", list: [], dict: {}}
    return zero[type(value)]


def _same(name: str, wanted: Any, found: Any) -> bool:
    if isinstance(wanted, dict):
        return all(_same(key, value, (found or {}).get(key)) for key, value in wanted.items())
    found = _zero(wanted) if found is None else found
    if name.startswith("max_") and {wanted, found} <= {0, -1}:
        return True  # both mean "no limit"
    return bool(found == wanted)


async def ensure_stream(
    client: Client,
    settings: Mapping[str, Any],
    *,
    replicas: int | None = None,
    prefix: str = DEFAULT_PREFIX,
    timeout_s: float = 15.0,
    remembered: int = 0,
    certain_s: float = 0.0,
) -> dict[str, Any]:
    """Make the stream if it is missing, else check its settings; return what the server says of it.

    ``replicas`` None takes whatever an existing stream has, and 1 for a new one. Waits for a
    leader within ``timeout_s``. A stream that the caller knows to hold events up to ``remembered`` is
    never made: servers that all start anew may say for a moment that they have none, and one made
    then is empty and takes the place of the old. ``certain_s`` is how long they have to keep saying so.

    Raises Refused(log_settings_differ) when an existing stream differs, and Unavailable(log_missing,
    log_unavailable or bus_unreachable). Cancelled, the stream may have been made.
    """
    name = settings["name"]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    last: IsthmusError | None = None
    missing_since: float | None = None
    async for left_s in pauses(deadline):
        try:
            try:
                info = await call(client, f"{prefix}.STREAM.INFO.{name}", timeout_s=min(2.0, left_s))
            except ApiError as error:
                if error.err_code != STREAM_NOT_FOUND:
                    raise
                if remembered:
                    last = _lost(name, remembered)
                    continue
                missing_since = missing_since or loop.time()
                if loop.time() - missing_since < certain_s:
                    last = Unavailable("log_unavailable", f"stream {name}: {error}", stream=name)
                    continue
                body = {**settings, "num_replicas": replicas or 1}
                info = await call(client, f"{prefix}.STREAM.CREATE.{name}", body, timeout_s=min(5.0, left_s))
        except Unavailable as error:
            last, missing_since = error, None
            continue
        except ApiError as error:
            if not error.passing:
                raise Refused(
                    "log_settings_differ", f"the server refuses stream {name}: {error}", stream=name
                ) from error
            last = Unavailable("log_unavailable", f"stream {name}: {error}", stream=name)
            continue
        _check(name, settings, replicas, info["config"])
        return info
    raise last or Unavailable("log_unavailable", f"stream {name} did not answer within {timeout_s:g} s")


class Absence:
    """How long nobody has answered for a stream; one that stays away is deleted, to be made anew.

    Only for what soon comes again. Replicas in memory whose servers were killed one after the other can end
    without a leader for good: the one that still has the history waits for a leader to catch up with, the
    others have less (seen with nats-server 2.15.1).
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name
        self._since_s: float | None = None

    def over(self) -> None:
        """Somebody has answered."""
        self._since_s = None

    async def lasts(self) -> None:
        """Nobody answers now: after :data:`LEADERLESS_S` of that the stream is deleted.

        Raises Unavailable where the bus does not take that. Cancelled, it may be gone.
        """
        now_s = time.monotonic()
        self._since_s = self._since_s or now_s
        if now_s - self._since_s <= LEADERLESS_S:
            return
        self._since_s = None
        log.warning("stream %s has had no leader for a while: it is made anew", self._name)
        try:
            await call(self._client, f"{DEFAULT_PREFIX}.STREAM.DELETE.{self._name}", timeout_s=2.0)
        except ApiError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise Unavailable(
                    "log_unavailable", f"stream {self._name}: {error}", stream=self._name
                ) from error


def has_leader(info: Mapping[str, Any]) -> bool:
    """Whether a stream of which the bus says this (STREAM.INFO) has a leader, or needs none."""
    cluster = info.get("cluster") or {}
    return bool(cluster.get("leader")) or not cluster.get("replicas")


def _lost(name: str, remembered: int) -> Unavailable:
    return Unavailable(
        "log_missing",
        f"the bus has no stream {name}, but this controller's read model was made from its events up to "
        f"{remembered}: it is not made anew. If the servers have lost it, restore it from an "
        "archive (isthmus replay import --archive FILE); if it was deleted on purpose, remove the read model's "
        "directory",
        stream=name,
        remembered=remembered,
    )


def _check(name: str, settings: Mapping[str, Any], replicas: int | None, found: Mapping[str, Any]) -> None:
    wrong = differences(settings, found)
    has = int(found.get("num_replicas", 1))
    if replicas is not None and has != replicas:
        wrong.append(
            f"num_replicas: found {has}, needed {replicas} (`nats stream edit {name} --replicas {replicas}`)"
        )
    if wrong:
        raise Refused(
            "log_settings_differ",
            f"stream {name} exists with other settings than its use needs: {'; '.join(wrong)}; "
            f"correct them with `nats stream edit {name}`, or use another bus",
            stream=name,
            differences=wrong,
        )
    if settings.get("compression") == UNCOMPRESSED and found.get("compression", UNCOMPRESSED) != UNCOMPRESSED:
        log.warning(
            "stream %s is compressed (%s): a replica of it can become unreadable when its server is killed. "
            "Switch it off: nats stream edit %s --compression none",
            name,
            found["compression"],
            name,
        )
