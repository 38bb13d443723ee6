"""The HTTP API: fuzzed from its own document, guarded, and true to the state that it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from controlplane.http.security import COOKIE, HEADERS, Gate, check_exposure
from events.errors import Usage
from tests.console.conftest import Background
from tests.console.rig import join, leave

TOKEN = "correct-horse-battery-staple"
SCHEMATHESIS = str(Path(sys.executable).with_name("schemathesis"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    with Background(tmp_path_factory.mktemp("guarded"), token=TOKEN) as background:
        background.do(background.rig.define(5))
        background.do(background.rig.fill(5))
        yield background


def get(background: Background, path: str, **options) -> httpx.Response:
    return httpx.get(f"{background.rig.url}{path}", **options)


def fuzz(background: Background, directory: Path, *options: str) -> None:
    """Every documented operation but the endless stream: no 500, each answer as the document says."""
    done = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{background.rig.url}/api/openapi.json", "--exclude-path", "/api/v1/live",
            "--max-examples", "12", "--seed", "7", "--checks", "all", "--no-color", *options,
        ],
        cwd=directory, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: 16" in done.stdout, done.stdout[-2000:]


@pytest.mark.slow
def test_the_api_withstands_a_fuzzer_that_knows_its_document(small, tmp_path):
    fuzz(small, tmp_path)


@pytest.mark.slow
def test_the_guarded_api_withstands_it_too_and_demands_the_token(guarded, tmp_path):
    fuzz(guarded, tmp_path, "--header", f"Authorization: Bearer {TOKEN}")


GUARDED = (
    "/api/v1/overview", "/api/v1/space", "/api/v1/nodes", "/api/v1/nodes/vm-1", "/api/v1/events",
    "/api/v1/events/1", "/api/v1/timeline", "/api/v1/moment?time=2026-01-01T00:00:00Z",
    "/api/v1/convergence", "/api/v1/convergence/3", "/api/v1/traces", "/api/v1/live", "/metrics",
    "/api/openapi.json",
)  # fmt: skip


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"cookie": f"{COOKIE}=made-up"},
        {"cookie": f"{COOKIE}={TOKEN}"},
    ],
)
def test_a_missing_or_wrong_token_gets_nothing(guarded, path, headers):
    answer = get(guarded, path, headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {
        "code": "forbidden",
        "message": "a token is needed: Authorization: Bearer …",
        "details": {},
    }
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "172.16" not in answer.text


def test_the_token_is_exchanged_for_a_session_that_a_script_cannot_read(guarded):
    with httpx.Client(base_url=guarded.rig.url) as client:
        assert client.get("/api/v1/session").json() == {"allowed": False, "token_required": True}
        assert client.post("/api/v1/login", json={"token": "no"}).status_code == 401
        answer = client.post("/api/v1/login", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert TOKEN not in cookie
        assert client.get("/api/v1/session").json() == {"allowed": True, "token_required": True}
        assert client.get("/api/v1/overview").status_code == 200


def test_sessions_expire_and_are_bounded():
    now = [0.0]
    gate = Gate(TOKEN, clock=lambda: now[0])
    first = gate.open_session_for(TOKEN)
    assert first is not None
    assert gate.allows("", str(first.value))
    now[0] = 13 * 3600
    assert not gate.allows("", str(first.value))
    for _ in range(1000):
        gate.open_session_for(TOKEN)
    assert len(gate._sessions) <= 256


def test_a_foreign_host_header_is_refused_on_loopback(small):
    """A web page elsewhere must not read the API by a name that it points here."""
    for path in ("/api/v1/overview", "/", "/metrics", "/api/v1/session", "/api/openapi.json"):
        assert get(small, path, headers={"host": "evil.example"}).status_code == 403
    assert get(small, "/api/v1/overview", headers={"host": "localhost:7480"}).status_code == 200


def test_beyond_loopback_a_good_token_is_demanded():
    check_exposure("127.0.0.1", "")
    check_exposure("::1", "")
    for host in ("0.0.0.0", "::", "192.168.1.4", "console.example"):
        with pytest.raises(Usage, match="demands a token"):
            check_exposure(host, "")
        check_exposure(host, TOKEN)
    with pytest.raises(Usage, match="16"):
        check_exposure("127.0.0.1", "short")


@pytest.mark.parametrize(
    "path", ["/", "/js/app.js", "/api/v1/overview", "/api/v1/nodes/nobody", "/nothing", "/metrics"]
)
def test_every_answer_carries_the_security_headers(small, path):
    answer = get(small, path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "server" not in answer.headers
    assert "'unsafe" not in answer.headers["content-security-policy"]


def test_static_files_do_not_lead_out_of_their_directory(small):
    for path in ("/../api.py", "/..%2fapi.py", "/js/../../api.py", "/%2e%2e/security.py"):
        answer = get(small, path)
        assert answer.status_code == 404, path
        assert "import" not in answer.text


def test_the_past_is_shown_as_it_was(started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    before = get(started, "/api/v1/overview").json()
    started.do(rig.send(leave(rig, 3)))
    started.do(rig.send(join(6)))
    started.call(rig.report_all)
    now = get(started, "/api/v1/overview").json()
    assert (now["nodes"], before["nodes"]) == (5, 5)
    sequence = before["position"]["sequence"]
    then = get(started, f"/api/v1/overview?at={sequence}").json()
    assert then["position"] == {**before["position"], "live": False, "head": now["position"]["head"]}
    assert then["pool"] == before["pool"]
    assert then["sites"] == before["sites"]
    names = [node["name"] for node in get(started, f"/api/v1/nodes?at={sequence}").json()["nodes"]]
    assert "idc-3" in names
    assert "idc-6" not in names
    space = get(started, f"/api/v1/space?at={sequence}").json()
    assert (space["index"], space["phase"]) == ([0, 1, 2, 3, 4], "aaaaa")
    gone = get(started, "/api/v1/nodes/idc-3").json()
    assert gone["member"] is None
    assert get(started, f"/api/v1/nodes/idc-3?at={sequence}").json()["member"]["range"] == "172.16.0.128/26"
    assert get(started, "/api/v1/overview?at=0").json()["defined"] is False
    assert get(started, "/api/v1/overview?at=99999").status_code == 404


def test_events_are_paged_and_filtered_without_gaps(small):
    head = get(small, "/api/v1/overview").json()["position"]["head"]
    seen: list[int] = []
    before = 0
    while True:
        page = get(small, f"/api/v1/events?limit=4&before={before}").json()
        seen += [event["sequence"] for event in page["events"]]
        before = page["before"]
        if not before:
            break
    assert seen == list(range(head, 0, -1))
    mine = get(small, "/api/v1/events?entity=idc-3").json()["events"]
    assert [event["type"] for event in mine] == ["range.allocated.v1", "node.joined.v1"]
    kinds = {e["type"].split(".")[0] for e in get(small, "/api/v1/events?aggregate=clb").json()["events"]}
    assert kinds == {"clb"}
    one = get(small, f"/api/v1/events/{mine[1]['sequence']}").json()
    assert one["data"]["uid"] == "uid-3"
    assert get(small, "/api/v1/events/99999").status_code == 404


def test_a_moment_is_resolved_to_the_sequence_then(small):
    events = get(small, "/api/v1/events").json()["events"]
    last = events[0]
    assert get(small, "/api/v1/moment", params={"time": last["time"]}).json()["sequence"] == last["sequence"]
    assert get(small, "/api/v1/moment", params={"time": "2001-01-01T00:00:00Z"}).json() == {
        "sequence": 0,
        "at": None,
    }
    for bad in ("yesterday", "2026-13-01T00:00:00Z", "1.5"):
        assert get(small, "/api/v1/moment", params={"time": bad}).status_code == 400


def test_the_document_describes_every_operation(small):
    document = get(small, "/api/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            for parameter in operation.get("parameters", []):
                assert parameter["description"], (method, path, parameter["name"])


def test_the_stream_carries_a_join_within_a_second(small):
    with httpx.stream("GET", f"{small.rig.url}/api/v1/live", timeout=5) as stream:
        lines = stream.iter_lines()
        assert next(line for line in lines if line.startswith("event:")) == "event: hello"
        small.do(small.rig.send(join(77)))
        frames = (json.loads(line[6:]) for line in lines if line.startswith("data: {") and len(line) > 10)
        frame = next(frame for frame in frames if frame["events"])
    assert [row["name"] for row in frame["nodes"]] == [join(77).node]
    assert frame["ranges"][0][1:3] == ["a", join(77).node]
    assert [event["type"] for event in frame["events"]] == ["range.allocated.v1", "node.joined.v1"]
    assert frame["head"] == small.rig.replica.state.sequence


def test_a_controller_that_is_not_well_says_so_without_details(small, monkeypatch):
    assert get(small, "/healthz").json() == {"ok": True, "reason": ""}
    monkeypatch.setattr(small.rig.source, "trouble", lambda: "secret path /data")
    answer = get(small, "/healthz")
    assert answer.status_code == 503
    assert "secret" not in answer.text


def test_a_defect_is_logged_and_not_told(small, monkeypatch, caplog):
    def broken():
        raise RuntimeError("inside /secret/place")

    monkeypatch.setattr(small.rig.source, "reports", broken)
    answer = get(small, "/api/v1/overview")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text
    assert "secret" in caplog.text
