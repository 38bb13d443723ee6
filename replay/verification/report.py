"""The paper that an auditor files: one HTML file, no outside reference, good on screen and in print."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from html import escape
from pathlib import Path

from replay.verification.outcome import Report
from replay.when import show

_STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1a1d21;background:#fff;
max-width:60rem;margin:2.5rem auto;padding:0 1.5rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid #c9ced6}
p.sub{color:#555c66;margin:0 0 1.5rem}
.verdict{border:2px solid;border-radius:6px;padding:.75rem 1rem;font-size:1.15rem;font-weight:600;margin:1rem 0}
.good{color:#0b5d2a;border-color:#0b5d2a;background:#effaf2}
.bad{color:#8f1414;border-color:#8f1414;background:#fdf0f0}
table{border-collapse:collapse;width:100%;margin:.5rem 0}th,td{text-align:left;padding:.35rem .6rem;
vertical-align:top;border-bottom:1px solid #e3e6ea}
th{font-weight:600;background:#f5f6f8}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums;white-space:nowrap}
code{font:13px/1.4 ui-monospace,"DejaVu Sans Mono",Menlo,monospace;overflow-wrap:anywhere}
.pass{color:#0b5d2a}.fail{color:#8f1414;font-weight:600}.none{color:#7a4b00}
.sign{margin-top:3rem;display:flex;gap:3rem}
.sign div{flex:1;border-top:1px solid #1a1d21;padding-top:.25rem;color:#555c66}
@media print{body{margin:0;max-width:none;font-size:11pt}h2{break-after:avoid}
tr{break-inside:avoid}thead{display:table-header-group}}
"""

_METHOD = (
    "Each event's header <code>ce-chain</code> must equal SHA-256 of the previous event's digest, the event's "
    "sequence, subject, identity headers and stored body; the first follows a digest of the cluster's name. "
    "Sequences must be without gap. Each envelope must be well formed, each event's id must follow from its "
    "command's id, the events of one command must stand together and only once. Each body must decode as its "
    "type and belong on its subject. The events are then folded from the beginning by the controller's own "
    "function, with the invariants of the design checked before each; state digests are compared where others "
    "state one. Server times are not covered by the hash chain; in an archive they are covered by its manifest."
)


def html(report: Report, tz: tzinfo, *, ran_by: str = "", archives: Sequence[str] = ()) -> str:
    """The whole document. Every time names its zone. ``ran_by`` is user@host; ``archives`` are the files read.

    Raises OSError when an archive cannot be read any more.
    """

    def moment(value: datetime | None) -> str:
        return show(value, tz) if value else "–"

    verdict = (
        f'<div class="verdict good">SOUND: {report.events:,} events, no error found</div>'
        if report.sound
        else f'<div class="verdict bad">NOT SOUND: {report.errors:,} '
        f"error{'s' if report.errors != 1 else ''} found in {report.events:,} events</div>"
    )
    facts = [
        ("Cluster", escape(report.cluster)),
        ("Source", f"<code>{escape(report.source)}</code>"),
        ("Events", f"{report.first:,} to {report.last:,} ({report.events:,})"),
        ("Recorded", f"{moment(report.recorded_from)} to {moment(report.recorded_to)}"),
        ("Chain digest at the end", f"<code>{report.head}</code>"),
        ("State digest at the end", f"<code>{report.state_digest or 'not reached'}</code>"),
        ("Verified", f"{moment(report.began)}, in {report.took_s:,.1f} s, by {escape(report.program)}"),
        ("Run by", f"{escape(ran_by) or 'not recorded'}"),
        *((f"SHA-256 of {escape(name)}", f"<code>{_sha256(name)}</code>") for name in archives),
    ]
    checks = "".join(
        f"<tr><td>{escape(check.title)}{f'<br>{escape(check.detail)}' if check.detail else ''}</td>"
        f'<td class="n">{check.looked_at:,} {escape(check.unit)}</td>'
        f"<td>{_result(check.passed, check.done, check.errors)}</td></tr>"
        for check in report.checks
    )
    findings = "".join(
        f'<tr><td class="n">{finding.sequence or "–"}</td><td>{escape(finding.level)}</td>'
        f"<td><code>{escape(finding.code)}</code></td><td>{escape(finding.message)}</td></tr>"
        for finding in report.findings
    )
    more = report.errors + report.warnings - len(report.findings)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Verification of cluster {escape(report.cluster)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Verification of the event log of cluster {escape(report.cluster)}</h1>"
        f'<p class="sub">Isthmus replay · {moment(datetime.now(UTC))}</p>{verdict}'
        "<h2>The log</h2><table>"
        + "".join(f"<tr><th scope=row>{name}</th><td>{value}</td></tr>" for name, value in facts)
        + "</table><h2>Checks</h2><table><thead>"
        "<tr><th>Check</th><th class=n>Looked at</th><th>Result</th></tr>"
        f"</thead><tbody>{checks}</tbody></table>"
        "<h2>Findings</h2>"
        + (
            "<table><thead><tr><th class=n>Event</th><th>Level</th><th>Code</th><th>What</th></tr></thead>"
            f"<tbody>{findings}</tbody></table>"
            if findings
            else "<p>None.</p>"
        )
        + (f"<p>{more:,} further findings are not listed.</p>" if more > 0 else "")
        + f"<h2>Method</h2><p>{_METHOD}</p>"
        '<div class="sign"><div>Name</div><div>Date</div><div>Signature</div></div></body></html>\n'
    )


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _result(passed: bool, done: bool, errors: int) -> str:
    if passed:
        return '<span class="pass">passed</span>'
    if errors:
        return f'<span class="fail">{errors:,} errors</span>'
    return '<span class="none">not completed</span>' if not done else "–"
