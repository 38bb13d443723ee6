"""The HTTP API: fuzzed from its own document, guarded, and true to the state that it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from controlplane.console.security import COOKIE, HEADERS, Authenticator, check_exposure
from controlplane.controller.agents.records import ConvergenceRecord
from events.errors import Usage
from events.protocol.commands import MarkGateway
from events.protocol.pods import NodeFact, PodFact, PodName, PodsView
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
    """Every documented operation but the endless stream: no 500, each answer as the document says.

    The open and the guarded API are the same operations behind another gate: each of the two tests spends
    its time on phases that the other one leaves out.
    """
    done = subprocess.run(
        [
            SCHEMATHESIS, "run", f"{background.rig.url}/api/openapi.json", "--exclude-path", "/api/v1/live",
            "--max-examples", "12", "--seed", "7", "--checks", "all", "--no-color", *options,
        ],
        cwd=directory, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "Tested: 19" in done.stdout, done.stdout[-2000:]


def test_an_address_is_that_of_a_node_and_of_the_pod_that_it_told_of(small):
    rig = small.rig
    state = rig.replica.state
    held = next(iter(state.owned.values()))
    address = f"{held.cidr.rpartition('.')[0]}.{int(held.cidr.rpartition('.')[2].partition('/')[0]) + 5}"
    path = f"/api/v1/addresses/{address}"
    assert get(small, path).json()["pod"]["state"] == "not at hand"
    fact = PodFact(
        address=address, container="c-1", interface="eth0", epoch=held.epoch,
        since=datetime.now(UTC) - timedelta(minutes=5),
        pod=PodName(namespace="shop", name="web-1", uid="p-1"),
    )  # fmt: skip
    asked: list[tuple[str, str]] = []

    async def told(ip: str, node: str) -> PodsView:
        asked.append((ip, node))
        facts = (NodeFact(node=held.node, uid=held.uid, fact=fact),)
        return PodsView(kept=True, since=fact.since, facts=facts)

    rig.source.pods_of = told
    try:
        found = get(small, path).json()
        assert (found["kind"], found["node"], found["epoch"]) == ("range", held.node, held.epoch)
        assert (found["pod"]["state"], found["pod"]["namespace"], found["pod"]["name"]) == (
            "known", "shop", "web-1"
        )  # fmt: skip
        assert asked == [(address, held.node)]
        then = get(small, path, params={"at": held.epoch - 1}).json()
        assert (then["kind"], then["pod"]) == ("free_range", None)
        member = state.nodes[held.node]
        assert get(small, f"/api/v1/addresses/{member.underlay}").json()["kind"] == "node"
        assert get(small, "/api/v1/addresses/not.an.ip").status_code == 400
        assert get(small, "/api/v1/addresses/192.0.2.250").json()["kind"] == "outside"
    finally:
        rig.source.pods_of = None


@pytest.mark.slow
def test_the_api_withstands_a_fuzzer_that_knows_its_document(small, tmp_path):
    fuzz(small, tmp_path, "--phases", "examples,coverage")


@pytest.mark.slow
def test_the_guarded_api_withstands_it_too_and_demands_the_token(guarded, tmp_path):
    header = f"Authorization: Bearer {TOKEN}"
    fuzz(guarded, tmp_path, "--header", header, "--phases", "examples,fuzzing,stateful")


GUARDED = (
    "/api/v1/overview", "/api/v1/space", "/api/v1/nodes", "/api/v1/nodes/vm-1", "/api/v1/events",
    "/api/v1/events/1", "/api/v1/timeline", "/api/v1/moment?time=2026-01-01T00:00:00Z",
    "/api/v1/convergence", "/api/v1/convergence/3", "/api/v1/clb/apiserver", "/api/v1/mesh", "/api/v1/traces",
    "/api/v1/live", "/metrics", "/api/openapi.json",
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
    gate = Authenticator(TOKEN, clock=lambda: now[0])
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
    assert (then["position"]["live"], then["position"]["head"]) == (False, now["position"]["head"])
    for field in ("sequence", "at"):
        assert then["position"][field] == before["position"][field]
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


def kernels(answer: httpx.Response) -> dict[str, tuple[str, int]]:
    return {node["name"]: (node.get("kernel", ""), node.get("kernel_at", 0)) for node in answer.json()["nodes"]}


def test_a_digest_is_not_believed_but_compared(started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    head = rig.replica.state.sequence
    started.call(rig.report, "vm-1", head, wrong=True)
    found = kernels(get(started, "/api/v1/nodes"))
    assert found == {
        **dict.fromkeys(("idc-2", "idc-3", "vm-4", "vm-5"), ("agrees", head)),
        "vm-1": ("differs", head),
    }
    view = get(started, "/api/v1/overview").json()
    assert view["kernels"] == {"agrees": 4, "differs": 1}
    assert [c["code"] for c in view["conditions"]] == ["kernel_differs"]
    assert get(started, "/api/v1/nodes/vm-1").json()["kernel_rows"][0].startswith("wanted route")
    started.do(rig.send(join(6)))
    assert kernels(get(started, "/api/v1/nodes"))["idc-6"] == ("", 0), "it has reported nothing"
    started.call(rig.report, "vm-1", rig.replica.state.sequence)
    assert get(started, "/api/v1/overview").json()["kernels"] == {"agrees": 5, "unreported": 1}


def test_a_measurement_that_an_earlier_process_broke_off_is_listed_only_while_somebody_lacks_the_event(started):
    rig = started.rig
    started.do(rig.define(5))
    whole = ConvergenceRecord(1, 1, 1_000_000, 0, "whole", 2, 2, array("f", [0.5]), (("a", 0.5),))
    broken = ConvergenceRecord(2, 2, 2_000_000, 0, "broken off", 2, 1, array("f", [0.5]), (("a", 0.5),))
    for number in (1, 2):
        started.do(rig.send(join(number)))
    # As in a process that has started since: nothing measured by itself yet, this read from the record.
    rig.source.observability.convergence._transactions.clear()
    rig.source.observability.convergence._lasts.clear()
    rig.source.observability.recalled = [broken, whole]

    def summaries() -> list[str]:
        return [one["summary"] for one in get(started, "/api/v1/convergence").json()]

    started.call(rig.report, "vm-1", 1)
    assert summaries() == ["broken off", "whole"]
    started.call(rig.report_all)
    assert summaries() == ["whole"]


def test_the_agents_and_the_convergence_are_shown_as_they_were(started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    started.do(rig.send(join(6)))
    middle = rig.replica.state.sequence
    started.call(rig.report_all, behind=("idc-3",), wrong=("vm-5",))
    started.call(rig.report, "vm-4", middle, agent_state="degraded")
    started.do(rig.record())
    started.do(rig.send(join(7)))
    started.call(rig.report_all)
    then = {node["name"]: node for node in get(started, f"/api/v1/nodes?at={middle}").json()["nodes"]}
    assert then["idc-3"]["applied"] == middle - 2
    assert then["idc-3"]["behind"] == 2
    assert (then["vm-5"]["kernel"], then["vm-5"]["kernel_at"]) == ("differs", middle)
    assert then["vm-4"]["state"] == "degraded"
    assert then["vm-4"]["conditions"]
    assert then["vm-1"]["state"] == "ready"
    now = get(started, "/api/v1/nodes").json()["nodes"]
    assert {node["applied"] for node in now} == {middle + 2}
    # The transaction had reached four of five then; now all.
    reached = get(started, f"/api/v1/convergence/{middle}?at={middle}").json()
    assert (reached["applied"], reached["expected"], reached["last"]) == (4, 5, None)
    assert reached["behind"] == ["idc-3"]
    done = get(started, f"/api/v1/convergence/{middle}").json()
    assert (done["applied"], done["behind"]) == (5, [])
    assert get(started, f"/api/v1/convergence?at={middle}").json()[0]["last_sequence"] == middle
    overview = get(started, f"/api/v1/overview?at={middle}").json()
    assert overview["watermark"] == middle - 2
    assert overview["kernels"]["differs"] == 1
    assert "kernel_differs" in {condition["code"] for condition in overview["conditions"]}


def test_a_moment_shows_the_same_as_its_sequence_and_nothing_is_guessed_before_the_record(started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    started.do(rig.send(join(6)))
    event = get(started, "/api/v1/events/5").json()
    by_time = get(started, "/api/v1/overview", params={"time": event["time"]}).json()
    by_sequence = get(started, f"/api/v1/overview?at={by_time['position']['sequence']}").json()
    assert by_time["pool"] == by_sequence["pool"]
    assert (
        get(started, "/api/v1/overview", params={"at": 3, "time": event["time"]}).json()["pool"]
        == by_time["pool"]
    )
    assert get(started, "/api/v1/overview?time=yesterday").status_code == 400
    assert get(started, "/api/v1/overview", params={"time": "2999-01-01T00:00:00Z"}).json()["position"]["live"]
    early = get(started, "/api/v1/overview", params={"time": "2001-01-01T00:00:00Z"}).json()
    assert early["position"]["recorded"] is False
    assert early["position"]["recorded_from"]
    assert early["agents"] == early["kernels"] == {}


def test_a_reservation_shows_who_holds_it_and_how_that_came_about(started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    started.do(rig.serve_clb())
    served = rig.replica.state.sequence
    page = get(started, "/api/v1/clb/edge").json()
    addresses = {a["purpose"]: a for a in page["reservation"]["addresses"]}
    assert {a["holder"] for a in addresses.values()} == {"vm-1", "vm-5"}
    assert (addresses["apiserver"]["backends"], addresses["apiserver"]["healthy"]) == (2, 1)
    assert all(page["held_since"].values())
    down = next(b for b in page["backends"] if not b["healthy"])
    assert (down["address"], down["reason"], down["check"]) == (
        "192.168.100.12", "connection refused", "tcp every 1 s, up after 2, down after 2",
    )  # fmt: skip
    assert [(g["node"], g["able"], len(g["holds"])) for g in page["gateways"]] == [
        ("vm-1", True, 1),
        ("vm-5", True, 1),
    ]
    assert [(h["healthy"], h["node"]) for h in page["health"]] == [(False, addresses["apiserver"]["holder"])]
    started.do(rig.send(MarkGateway(node="vm-1", on=False)))
    moved = get(started, "/api/v1/clb/edge").json()
    assert {a["holder"] for a in moved["reservation"]["addresses"]} == {"vm-5"}
    ended = [t for t in moved["tenures"] if t["until"]]
    assert [(t["node"], t["cause"], t["gap_s"]) for t in ended] == [("vm-1", "unmarked", 0.0)]
    assert len(moved["tenures"]) == 3
    # As it was before, and before there was anything.
    then = get(started, f"/api/v1/clb/edge?at={served}").json()
    assert then["reservation"] == page["reservation"]
    assert then["backends"] == page["backends"]
    assert get(started, "/api/v1/clb/edge?at=3").status_code == 404
    assert get(started, "/api/v1/clb/nothing").status_code == 404


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
    with httpx.stream("GET", f"{small.rig.url}/api/v1/live", timeout=30) as stream:
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
    monkeypatch.setattr(small.rig.source, "not_working_reason", lambda: "secret path /data")
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
