"""What strangers send: odd bytes, half requests, many of them, guesses of the token: never a 500."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import ExitStack

import httpx
import pytest

from controlplane.console.limits import Attempts, RequestLimits
from controlplane.console.security import COOKIE, LOGINS_FAILED_MAX
from tests.console.conftest import Background

TOKEN = "correct-horse-battery-staple"
HOST = b"Host: localhost\r\n"
LOGIN = b"POST /api/v1/login HTTP/1.1\r\n" + HOST


def asking(path: bytes, headers: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n"


def login(body: bytes, headers: bytes = b"Content-Type: application/json\r\n") -> bytes:
    return LOGIN + headers + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body


ODD = {
    "a NUL": asking(b"/%00"),
    "a NUL in a folder": asking(b"/js/%00.js"),
    "a NUL in the API": asking(b"/api/%00"),
    "line ends": asking(b"/%0a%0d"),
    "no UTF-8": asking(b"/%ff%fe"),
    "a surrogate": asking(b"/%ed%a0%80"),
    "a long name": asking(b"/" + b"a" * 300),
    "a very long name": asking(b"/" + b"a" * 5000),
    "many folders": asking(b"/" + b"a/" * 3000),
    "a way out": asking(b"/..%2f..%2f..%2fetc/passwd"),
    "a cookie of bytes": asking(b"/api/v1/overview", b"Cookie: isthmus_session=\xc3\xa9\r\n"),
    "an escaped cookie": asking(b"/api/v1/overview", b'Cookie: \xff=\xff; isthmus_session="\\377"\r\n'),
    "an authorization of bytes": asking(b"/api/v1/overview", b"Authorization: Bearer \xff\xfe\r\n"),
    "an empty authorization": asking(b"/api/v1/overview", b"Authorization: Bearer\r\n"),
    "a host of bytes": b"GET /api/v1/overview HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    "half a host": b"GET /api/v1/overview HTTP/1.1\r\nHost: [::1\r\n\r\n",
    "a huge sequence": asking(b"/api/v1/overview?at=1" + b"0" * 400),
    "a number too long for Python": asking(b"/api/v1/overview?at=1" + b"0" * 6000),
    "a huge event": asking(b"/api/v1/events/1" + b"0" * 200),
    "a huger event": asking(b"/api/v1/events/1" + b"0" * 6000),
    "no number": asking(b"/api/v1/nodes?limit=nan"),
    "text of bytes": asking(b"/api/v1/nodes?text=%ff%00"),
    "an entity that is a surrogate": asking(b"/api/v1/events?entity=%ed%a0%80"),
    "an entity that is a NUL": asking(b"/api/v1/events?entity=%00&aggregate=node"),
    "a node of bytes": asking(b"/api/v1/nodes/%ff"),
    "a reservation that is a surrogate": asking(b"/api/v1/clb/%ed%a0%80"),
    "a trace of bytes": asking(b"/api/v1/traces/?node=%ed%a0%80"),
    "the beginning of time": asking(b"/api/v1/overview?time=0001-01-01T00:00:00Z"),
    "a time before Unix": asking(b"/api/v1/overview?time=1969-12-31T23:59:59Z"),
    "the end of time": asking(b"/api/v1/moment?time=9999-12-31T23:59:59-23:59"),
    "a time that is a NUL": asking(b"/api/v1/moment?time=%00"),
    "many parameters": asking(b"/api/v1/overview?" + b"&".join(b"a%d=1" % i for i in range(3000))),
    "no method": b"FOO / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "a token that is a surrogate": login(b'{"token":"\\ud800"}'),
    "a token that is none": login(b'{"token":3}'),
    "a body of bytes": login(b"\xff\xfe\x00"),
    "a body nested without end": login(b"[" * 10000),
    "a content type of bytes": login(b"{}", b"Content-Type: \xff\r\n"),
    "an unknown charset": login(b'{"token":"xx"}', b"Content-Type: application/json; charset=nope\r\n"),
    "a negative length": LOGIN + b"Content-Length: -1\r\n\r\n",
    "a huge length": LOGIN + b"Content-Length: 99999999999999999999\r\n\r\n",
    "a broken chunk": LOGIN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an odd accept": asking(b"/api/v1/overview", b"Accept: \xff/\xfe;q=z\r\n"),
    "odd conditions": asking(b"/js/app.js", b"Range: bytes=a-b\r\nIf-None-Match: \xff\r\n"),
}


@pytest.fixture(scope="module", params=["", TOKEN], ids=["open", "guarded"])
def served(request, tmp_path_factory):
    with Background(tmp_path_factory.mktemp("limits"), token=request.param) as background:
        background.do(background.rig.define(5))
        if request.param:  # a session, so that cookies are compared with one
            httpx.post(f"{background.rig.url}/api/v1/login", json={"token": TOKEN}).raise_for_status()
        yield background


def port(background: Background) -> int:
    return int(background.rig.url.rsplit(":", 1)[1])


def sent(background: Background, request: bytes) -> tuple[int, bytes]:
    """The status and the body of the answer to those bytes."""
    with socket.create_connection(("127.0.0.1", port(background)), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
            head, found, body = answer.partition(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            if found and (not length or len(body) >= int(length[0].split(b":")[1])):
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


@pytest.mark.parametrize("request_", ODD.values(), ids=ODD.keys())
def test_odd_bytes_get_a_typed_answer_and_never_a_500(served, request_):
    status, body = sent(served, request_)
    assert status < 500, body
    if status >= 400 and body.startswith(b"{"):
        error = json.loads(body)
        assert error["code"] != "internal"
        assert error["message"]


def test_what_is_not_there_says_so_by_its_code(started):
    started.do(started.rig.define(2))
    codes = {
        "/nothing": "not_found", "/api/v1/nodes/ghost": "node_unknown", "/api/v1/clb/ghost": "clb_unknown",
        f"/api/v1/traces/{'0' * 32}": "trace_unknown", "/api/v1/events/999": "not_found",
        "/api/v1/overview?at=999": "not_found", "/api/v1/convergence/999": "not_found",
    }  # fmt: skip
    for path, code in codes.items():
        answer = httpx.get(f"{started.rig.url}{path}")
        assert (answer.status_code, answer.json().get("code")) == (404, code), (path, answer.text)


def test_half_open_requests_of_600_callers_do_not_hide_health_and_metrics(started):
    with ExitStack() as stack:
        for number in range(600):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port(started)), timeout=60))
            connection.sendall((b"GET / HTTP/1.1\r\n", b"", LOGIN + b"Content-Length: 9\r\n\r\n{")[number % 3])
        for path in ("/healthz", "/metrics", "/api/v1/overview"):
            assert httpx.get(f"{started.rig.url}{path}", timeout=60).status_code == 200, path


async def test_others_requests_leave_health_its_own_budget():
    release = asyncio.Event()
    answered: list[str] = []

    async def app(scope, _receive, _send):
        if scope["path"] == "/slow":
            await release.wait()
        answered.append(scope["path"])

    refused: list[int] = []

    async def send(message):
        if message["type"] == "http.response.start":
            refused.append(message["status"])

    limits = RequestLimits(app)
    slow = [asyncio.create_task(limits({"type": "http", "path": "/slow"}, None, send)) for _ in range(192)]
    await asyncio.sleep(0)
    await limits({"type": "http", "path": "/slow"}, None, send)
    assert refused == [503]
    await limits({"type": "http", "path": "/healthz"}, None, send)
    assert answered == ["/healthz"]
    release.set()
    await asyncio.gather(*slow)
    assert len(answered) == 193


def test_attempts_are_counted_by_address_and_forgotten_after_the_window():
    now = [0.0]
    attempts = Attempts(2, 60, clock=lambda: now[0])
    for _ in range(2):
        assert attempts.wait_s("2001:db8::1") == 0
        attempts.failed("2001:db8::1")
    assert attempts.wait_s("2001:db8::2") == 60, "one site is one caller"
    assert attempts.wait_s("192.0.2.1") == 0
    now[0] = 61
    assert attempts.wait_s("2001:db8::1") == 0


def test_log_ins_are_limited_and_programs_with_the_token_are_not(tmp_path):
    with Background(tmp_path, token=TOKEN) as background:
        url = background.rig.url
        for _ in range(LOGINS_FAILED_MAX):
            assert httpx.post(f"{url}/api/v1/login", json={"token": "guess"}).status_code == 401
        answer = httpx.post(f"{url}/api/v1/login", json={"token": TOKEN})
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attempts")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert COOKIE not in answer.cookies
        right = {"authorization": f"Bearer {TOKEN}"}
        seen = [
            httpx.get(f"{url}/api/v1/overview", headers={"authorization": "Bearer guess"}).status_code
            for _ in range(62)
        ]
        assert (seen[0], seen[-1]) == (401, 429)
        assert httpx.get(f"{url}/api/v1/overview", headers=right).status_code == 200
