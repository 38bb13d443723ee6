"""The tables of the read model.

Every row of a temporal table was true from sequence ``valid_from`` on until just before
``valid_to`` (:data:`OPEN` while it still is), that is from ``from_us`` until before ``to_us``:
microseconds of Unix time of the *decision*, which the hash chain covers and which survives export
and import; the bus's own time does neither.

The state as of sequence ``s`` is ``valid_from <= s AND valid_to > s``. An index over both alone would
scan everything that ended after ``s``; so rows that lived longer than :data:`LONG` sequences have an index
of their own, and so have those that lived longer than :data:`LONGER`: of the others only those that ended
within LONG (or LONGER) after ``s`` come into question.

What the state keeps of a member, a range or a fenced uid lies in one column, ``row``, as the JSON of that
value: SQLite joins the rows of a state to one text, and one call decodes them all. Columns beside it are those
that rows are found by, and what is rare. ``fenced.row`` is the member of a JSON object (``"uid":{…}``), and
lies in the index that it is found by, since nearly all of a long history's are true at its end.
"""

from __future__ import annotations

VERSION = 4
"""Of these tables. A file with another version is rebuilt, never altered."""

OPEN = 9223372036854775807
"""``valid_to`` of what is still true: the largest SQLite integer."""

LONG = 16_384
LONGER = 131_072
"""Sequences; see above. Part of the partial indices, hence of the version."""

_VALID = """
    valid_from INTEGER NOT NULL,
    valid_to   INTEGER NOT NULL DEFAULT 9223372036854775807,
    from_us    INTEGER NOT NULL,
    to_us      INTEGER NOT NULL DEFAULT 9223372036854775807"""

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE checkpoint (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    sequence INTEGER NOT NULL,
    chain    TEXT NOT NULL,
    time_us  INTEGER NOT NULL
);

CREATE TABLE event (
    sequence INTEGER PRIMARY KEY,
    time_us  INTEGER NOT NULL,
    type     TEXT NOT NULL,
    entity   TEXT NOT NULL
);
CREATE INDEX event_time ON event (time_us);
CREATE INDEX event_entity ON event (entity, sequence);

CREATE TABLE command (
    command_id TEXT PRIMARY KEY,
    first      INTEGER NOT NULL,
    last       INTEGER NOT NULL,
    actor      TEXT NOT NULL,
    time_us    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX command_first ON command (first);

CREATE TABLE node (
    name TEXT NOT NULL, row TEXT NOT NULL, unreachable INTEGER NOT NULL, last_seen_us INTEGER,{_VALID},
    PRIMARY KEY (name, valid_from)
);
CREATE UNIQUE INDEX node_now ON node (name) WHERE valid_to = {OPEN};
CREATE INDEX node_span ON node (valid_to, valid_from);
CREATE INDEX node_long ON node (valid_to, valid_from)
    WHERE valid_to - valid_from > {LONG} AND valid_to - valid_from <= {LONGER};
CREATE INDEX node_longer ON node (valid_to, valid_from)
    WHERE valid_to < {OPEN} AND valid_to - valid_from > {LONGER};

CREATE TABLE range (
    idx INTEGER NOT NULL, node TEXT NOT NULL, row TEXT NOT NULL, phase TEXT NOT NULL,
    until_us INTEGER, watermark INTEGER NOT NULL, cursor_after INTEGER,{_VALID},
    PRIMARY KEY (idx, valid_from)
);
CREATE UNIQUE INDEX range_now ON range (idx) WHERE valid_to = {OPEN};
CREATE INDEX range_span ON range (valid_to, valid_from);
CREATE INDEX range_long ON range (valid_to, valid_from)
    WHERE valid_to - valid_from > {LONG} AND valid_to - valid_from <= {LONGER};
CREATE INDEX range_longer ON range (valid_to, valid_from)
    WHERE valid_to < {OPEN} AND valid_to - valid_from > {LONGER};
CREATE INDEX range_node ON range (node, valid_from);
CREATE INDEX range_cursor ON range (valid_from) WHERE cursor_after IS NOT NULL;

CREATE TABLE fenced (
    uid TEXT NOT NULL, row TEXT NOT NULL,{_VALID},
    PRIMARY KEY (uid, valid_from)
);
CREATE UNIQUE INDEX fenced_now ON fenced (uid) WHERE valid_to = {OPEN};
CREATE INDEX fenced_span ON fenced (valid_to, valid_from, row);

CREATE TABLE fact (
    kind TEXT NOT NULL, key TEXT NOT NULL, part TEXT NOT NULL, value TEXT NOT NULL,{_VALID},
    PRIMARY KEY (kind, key, part, valid_from)
);
CREATE UNIQUE INDEX fact_now ON fact (kind, key, part) WHERE valid_to = {OPEN};
CREATE INDEX fact_span ON fact (valid_to, valid_from);

CREATE TABLE parked (
    sequence INTEGER PRIMARY KEY, type TEXT NOT NULL, entity TEXT NOT NULL,
    error TEXT NOT NULL, time_us INTEGER NOT NULL
);
"""
"""``fact`` keeps what is rare as JSON: definition, cidr, network, override, clb, refusal, deleted, path."""
