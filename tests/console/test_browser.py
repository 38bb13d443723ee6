"""The console in a real browser: every view, live, in the past, by keyboard."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from controlplane.cluster.decision import MarkNat, NatFinding
from controlplane.console.event_text import MARKS
from events.protocol.commands import AddEntry, AppendCidr, ImportNodes, MarkGateway
from events.status import PeerWay, WaysReport
from tests.console.browser import page_on, settled, tile, violations, violations_in_both_themes
from tests.console.conftest import Background
from tests.console.rig import join, leave

pytestmark = pytest.mark.slow

VIEWS = {
    "/": "Overlay", "/#/nodes": "Nodes", "/#/nodes/idc-3": "idc-3", "/#/events": "Events",
    "/#/events/4": "Event 4", "/#/traces": "Traces", "/#/plan": "Plan", "/#/clb": "CLB",
    "/#/clb/apiserver": "apiserver", "/#/mesh": "Mesh",
}  # fmt: skip


@pytest.mark.parametrize("path", VIEWS)
def test_each_view_shows_no_complaint_no_outside_request_and_passes_the_accessibility_check(
    browser, small, path
):
    with page_on(browser, small.rig.url, path) as page:
        settled(page)
        expect(page.locator("main h1").first).to_have_text(VIEWS[path])
        page.wait_for_load_state("load")
        assert violations_in_both_themes(page) == {}


def test_members_that_never_reported_do_not_look_as_if_they_were_up(browser, started):
    rig = started.rig
    started.do(rig.define(4))
    started.do(rig.send(ImportNodes(nodes=tuple(join(number) for number in range(1, 5)))))
    rig.report("vm-1", rig.replica.state.sequence)
    with page_on(browser, rig.url, "/#/nodes") as page:
        settled(page)
        expect(page.locator(".head [role=status]")).to_have_text("1 of 4 up")
        expect(page.locator("tbody .state", has_text="never reported")).to_have_count(3)
        page.get_by_label("State").select_option("unreported")
        expect(page.locator(".head [role=status]")).to_have_text("3 shown; 1 of 4 up")
    with page_on(browser, rig.url, "/#/mesh") as page:
        settled(page)
        expect(page.locator(".head .state")).to_have_text("not known whether pods reach each other")


def test_a_trace_is_drawn_as_a_waterfall_and_opens_its_spans(browser, small):
    with page_on(browser, small.rig.url, "/#/traces") as page:
        page.get_by_role("link", name="import nodes").first.click()
        expect(page.locator(".wf summary")).to_have_count(3)
        page.locator(".wf summary").first.click()
        expect(page.locator(".wf .detail").first).to_contain_text("isthmus.command.id")
        assert violations(page) == []


def test_a_join_appears_without_a_reload(browser, started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    with page_on(browser, rig.url) as page:
        settled(page)
        expect(tile(page, "Nodes")).to_have_text("5")
        page.evaluate("window.stillHere = true")
        started.do(rig.send(join(6)))
        started.call(rig.report_all)
        expect(tile(page, "Nodes")).to_have_text("6")
        expect(page.locator(".feed li").first).to_contain_text("172.16.1.64/26 allocated to idc-6")
        expect(page.locator(".names", has_text="idc-6")).to_be_visible()
        expect(page.locator(".conv li").first).to_contain_text("· 5")
        started.do(rig.send(leave(rig, 6)))
        expect(tile(page, "Nodes")).to_have_text("5")
        assert page.evaluate("window.stillHere") is True


def test_the_slider_shows_everything_as_it_was_and_finds_back(browser, started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    sequence = rig.replica.state.sequence
    for number in (6, 7, 8):
        started.do(rig.send(join(number)))
    with page_on(browser, rig.url) as page:
        settled(page)
        expect(tile(page, "Nodes")).to_have_text("8")
        slider = page.locator("#slider")
        slider.focus()
        for _ in range(3):  # each join is one command of two events
            slider.press("ArrowLeft")
        expect(page.locator("#past")).to_contain_text(f"You are looking at event {sequence}")
        expect(tile(page, "Nodes")).to_have_text("5")
        expect(page.locator(".feed li").first).to_contain_text("allocated to vm-5")
        assert f"at={sequence}" in page.url
        # What happens meanwhile does not disturb the past.
        started.do(rig.send(join(9)))
        expect(page.locator(".time .where")).to_contain_text(f"of {sequence + 8}")
        expect(tile(page, "Nodes")).to_have_text("5")
        # Another view of the same moment, and a link to it that a colleague may open.
        page.get_by_role("link", name="Nodes", exact=True).click()
        expect(page.locator("tbody tr")).to_have_count(5)
        assert f"nodes?at={sequence}" in page.url
        page.get_by_role("button", name="Back to the present").click()
        expect(page.locator("#past")).to_be_hidden()
        expect(page.locator("tbody tr")).to_have_count(9)
        expect(page.locator("tbody tr", has=page.get_by_role("link", name="idc-3"))).to_contain_text(
            "12 of 611450, 1380 to some"
        )
        page.get_by_label("Go to an event's number or a time").fill(str(sequence + 1))
        page.keyboard.press("Enter")
        expect(page.locator("#past")).to_contain_text(
            f"In the middle of one command (events {sequence + 1} to {sequence + 2})"
        )
        for end in (sequence + 2, sequence + 4):
            page.get_by_role("button", name="One command forward").click()
            expect(page.locator("#past")).to_contain_text(f"You are looking at event {end}")
        page.get_by_role("button", name="One command back").click()
        expect(page.locator("#past")).to_contain_text(f"You are looking at event {sequence + 2}")
        expect(page.locator("#past")).not_to_contain_text("In the middle")
    with page_on(browser, rig.url, f"/#/nodes?at={sequence}") as page:
        expect(page.locator("tbody tr")).to_have_count(5)
        assert violations(page) == []


def test_the_past_shows_agents_kernels_and_convergence_as_they_were(browser, started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    started.do(rig.record())
    started.do(rig.send(join(6)))
    middle = rig.replica.state.sequence
    started.call(rig.report_all, behind=("idc-3",), wrong=("vm-5",))
    started.do(rig.record())
    started.do(rig.send(join(7)))
    started.call(rig.report_all)
    with page_on(browser, rig.url, f"/#/?at={middle}") as page:
        expect(page.locator(".conditions")).to_contain_text("kernel differs")
        expect(tile(page, "Kernels agree")).to_have_text("5 of 6")
        expect(page.locator(".conv li").first).to_contain_text("4/5")
        page.get_by_role("link", name="Nodes", exact=True).click()
        row = page.locator("tbody tr", has=page.get_by_role("link", name="vm-5"))
        expect(row).to_contain_text("✕ differs")
        expect(page.locator("tbody tr", has=page.get_by_role("link", name="idc-3"))).to_contain_text("✓ agrees")
        row.get_by_role("link").click()
        expect(page.locator(".rows")).to_contain_text("wanted route 172.16.0.64/26")
        assert violations(page) == []
        page.get_by_role("button", name="Live").click()
        expect(page.locator(".kernel").first).to_have_text("✓ agrees")
        # By the clock instead of a number; before there was a record nothing is made up.
        page.get_by_role("link", name="Overlay", exact=True).click()
        page.get_by_label("Go to an event's number or a time").fill("2001-01-01 12:00")
        page.keyboard.press("Enter")
        expect(page.locator("#past")).to_contain_text("not recorded; the record begins")
        expect(tile(page, "Agents behind")).to_have_text("–")
        expect(page.locator(".conv .empty, .panel .empty").first).to_be_visible()
        assert "time=2001-01-01" in page.url
        assert violations(page) == []
        page.get_by_label("Go to an event's number or a time").fill(f"#{middle}")
        page.keyboard.press("Enter")
        expect(page.locator("#past")).to_contain_text(f"event {middle}")
        page.get_by_role("button", name="time", exact=True).click()
        page.locator("#slider").press("End")
        expect(page.locator("#past")).to_be_hidden()


def test_a_reservation_shows_its_holders_and_follows_a_failover(browser, started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    started.do(rig.serve_clb())
    served = rig.replica.state.sequence
    with page_on(browser, rig.url, "/#/clb") as page:
        expect(page.get_by_text("Nobody outside reaches pods.")).to_be_visible()
        started.do(rig.send(AddEntry(entry="api", sources=("203.0.113.0/28",))))
        expect(page.get_by_role("table", name="Entries")).to_contain_text("203.0.113.0/28")
        page.get_by_role("link", name="edge").click()
        cards = page.locator(".address")
        expect(cards.first).to_contain_text("vm-1 holds it since")
        expect(cards.first).to_contain_text("1 of 2 healthy")
        expect(page.get_by_role("table", name="Backends")).to_contain_text("connection refused")
        assert violations(page) == []
        started.do(rig.send(MarkGateway(node="vm-1", on=False)))
        expect(cards.first).to_contain_text("vm-5 holds it since")
        expect(page.get_by_role("table", name="Holders")).to_contain_text("unmarked, handed over")
        page.get_by_label("Go to an event's number or a time").fill(str(served))
        page.keyboard.press("Enter")
        expect(cards.first).to_contain_text("vm-1 holds it since")
        expect(page.get_by_role("table", name="Holders")).not_to_contain_text("handed over")


def test_each_cidr_has_its_stretch_of_the_ring_and_nothing_runs_around_it(browser, started):
    """A range that the gap between two CIDRs swallows once painted the whole ring."""
    rig = started.rig
    started.do(rig.define(10_000))
    started.do(rig.fill(200))
    started.do(rig.send(AppendCidr(cidr="10.128.0.0/14")))
    spy = """(() => {
        const own = CanvasRenderingContext2D.prototype.arc;
        window.turns = [];
        CanvasRenderingContext2D.prototype.arc = function (x, y, radius, from, to) {
            window.turns.push(to - from);
            return own.call(this, x, y, radius, from, to);
        };
    })()"""
    with page_on(browser, rig.url) as page:
        page.add_init_script(spy)
        page.reload()
        settled(page)
        expect(page.locator(".ring b")).to_have_text("20,216")
        turns = page.evaluate("window.turns")
        assert turns
        assert min(turns) > 0
        free, used = max(turns), 2 * 3.1416 * 0.8
        assert free < used + 0.05, "the first CIDR is four fifths of the ring"
        page.goto(f"{rig.url}/#/plan")
        expect(page.get_by_role("table", name="Container CIDRs").locator("tbody tr")).to_have_count(2)


def test_on_a_phone_nothing_runs_out_of_the_page(browser, started):
    rig = started.rig
    started.do(rig.define(5))
    started.do(rig.fill(5))
    started.do(rig.serve_clb())
    views = {
        "/": "Overlay", "/#/nodes": "Nodes", "/#/nodes/vm-1": "vm-1", "/#/clb/edge": "edge",
        "/#/events": "Events", "/#/plan": "Plan", "/#/traces": "Traces",
    }  # fmt: skip
    with page_on(browser, rig.url, width=390, height=844) as page:
        for path, title in views.items():
            page.goto(f"{rig.url}{path}")
            settled(page)
            expect(page.locator("main h1").first).to_have_text(title)
            page.wait_for_timeout(150)
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            long = page.evaluate("document.documentElement.scrollHeight - innerHeight")
            inner = page.evaluate(
                "document.querySelector('main').scrollWidth - document.querySelector('main').clientWidth"
            )
            assert (wide, long, inner) == (0, 0, 0), path
            assert violations(page) == []


def walkable(page: Page):
    """The map of the ranges, once it has been drawn: it says then how many there are."""
    canvas = page.locator(".cells canvas")
    expect(canvas).to_have_attribute("aria-label", re.compile(r"^Map of [\d,]+ ranges: 5 allocated"))
    return canvas


def test_the_map_can_be_walked_by_keyboard_and_speaks(browser, small):
    with page_on(browser, small.rig.url) as page:
        walkable(page).focus()
        for _ in range(3):
            page.keyboard.press("n")
        expect(page.locator("#announce")).to_contain_text("allocated to")
        expect(page.locator("#tip")).to_contain_text("172.16.0.128/26")
        page.keyboard.press("End")
        expect(page.locator("#tip")).to_contain_text(re.compile(r"1,0\d\d free ranges\n.* to 172.16.254.192"))
        page.keyboard.press("ArrowUp")  # what is folded is one stop
        expect(page.locator("#tip")).to_contain_text("free")
        page.keyboard.press("Home")
        for _ in range(2):
            page.keyboard.press("n")
        expect(page.locator("#tip")).to_contain_text("172.16.0.128/26")
        page.keyboard.press("Enter")
        expect(page.locator("main h1").first).to_have_text("idc-3")


def test_a_map_focused_before_its_ranges_came_says_so_and_is_walkable_when_they_are_there(browser, small):
    held = []

    def hold(page: Page) -> None:
        page.route("**/api/v1/space*", lambda route: held.append(route))  # noqa: PLW0108 (playwright marks what it is given, and a method of a list takes no marks)

    with page_on(browser, small.rig.url, before=hold) as page:
        settled(page)
        canvas = page.locator(".cells canvas")
        canvas.focus()
        for key in ("n", "ArrowRight", "Enter"):
            page.keyboard.press(key)
        canvas.click()
        expect(page.locator("#announce")).to_have_text("The map is not loaded yet")
        for route in held:
            route.continue_()
        walkable(page)
        page.keyboard.press("n")
        expect(page.locator("#announce")).to_contain_text("172.16.0.0/26")


def test_a_nodes_page_says_which_way_its_packets_take_to_whom(browser, started):
    started.do(started.rig.define(3))
    started.do(started.rig.fill(3))
    state = started.rig.replica.state
    own, nat, relayed = list(state.owned)
    started.do(
        started.rig.send(MarkNat(found=(NatFinding(state.nodes[nat].uid, True, "203.0.113.9", (own,)),)))
    )
    ways = WaysReport(nat=1, relayed=1, encrypted=2, peers=(
        PeerWay(state.owned[nat].epoch, "nat", 90.0, "203.0.113.9:41000", True),
        PeerWay(state.owned[relayed].epoch, "relayed", 5.0, nat, True, "it did not answer"),
        PeerWay(10**9, "nat", 5.0, "a peer that has left"),
    ))  # fmt: skip
    started.call(started.rig.report, own, state.sequence, ways=ways)
    with page_on(browser, started.rig.url, f"/#/nodes/{own}") as page:
        rows = page.get_by_role("table", name="Ways to peers").locator("tbody tr")
        expect(rows).to_have_count(2)
        expect(rows.nth(0)).to_contain_text(f"{nat}through NAT, encrypted203.0.113.9:41000")
        expect(rows.nth(1)).to_contain_text(f"{relayed}relayed, encrypted to and from it{nat}")
        expect(rows.nth(1).locator("td").last).to_have_attribute("title", re.compile(r"\d: it did not answer$"))
        expect(rows.nth(1).locator("td").last).to_be_in_viewport(ratio=1)
        assert violations_in_both_themes(page) == {}
        page.get_by_role("link", name="Nodes", exact=True).click()
        marked = page.locator("td.c-announced", has_text="NAT")
        expect(marked).to_have_count(1)
        expect(marked.locator("span.muted")).to_have_attribute("title", "behind NAT; first seen as 203.0.113.9")
        page.get_by_role("link", name="Mesh", exact=True).click()
        hidden, site = page.get_by_role("list", name="Sites"), state.nodes[nat].site
        expect(hidden.locator("li", has_text="behind NAT")).to_contain_text(f"{site} · ")
        between = page.get_by_role("list", name="Ways between sites").locator("li", has_text=site)
        for line in between.all():
            expect(line).to_contain_text("through NAT")
        assert violations_in_both_themes(page) == {}


def test_the_first_stop_of_the_keyboard_skips_to_the_content(browser, small):
    with page_on(browser, small.rig.url) as page:
        settled(page)
        expect(tile(page, "Nodes")).to_have_text("5")  # what comes later would take the focus along
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        ring = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.evaluate(ring) == "none", "a ring around the whole page is a line across it"
        page.keyboard.press("Tab")
        assert page.evaluate(ring) == "solid"


def test_the_theme_is_remembered(browser, small):
    with page_on(browser, small.rig.url, theme="light") as page:
        settled(page)
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        button = page.locator("#theme")
        button.click()
        button.click()
        expect(button).to_have_attribute("aria-label", "Theme: dark")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark != light
        page.reload()
        settled(page)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_text_from_the_log_is_never_markup(browser, started):
    rig = started.rig
    started.do(rig.define(5))
    evil = '<img src=x onerror="window.hurt=1">'
    command = join(3)
    started.do(
        rig.send(type(command)(**{**{f: getattr(command, f) for f in command.__struct_fields__}, "site": evil}))
    )
    with page_on(browser, rig.url) as page:
        for path in ("/", "/#/nodes", "/#/nodes/idc-3", "/#/events", "/#/events/3"):
            page.goto(f"{rig.url}{path}")
            settled(page)
        expect(page.locator("main")).to_contain_text("onerror")
        assert page.evaluate("window.hurt") is None


def test_with_a_token_the_console_asks_for_it_once(browser, tmp_path):
    with Background(tmp_path, token="correct-horse-battery-staple") as background:
        background.do(background.rig.define(5))
        context = browser.new_context()
        try:
            page = context.new_page()
            page.goto(background.rig.url)
            page.get_by_label("Token of this controller").fill("wrong")
            page.get_by_role("button", name="Open").click()
            expect(page.get_by_role("alert")).to_have_text("That is not the token.")
            assert violations(page) == []
            page.get_by_label("Token of this controller").fill("correct-horse-battery-staple")
            page.get_by_role("button", name="Open").click()
            settled(page)
            page.reload()
            settled(page)
        finally:
            context.close()
        with page_on(browser, background.rig.url, "/#token=correct-horse-battery-staple") as page:
            settled(page)
            assert "token" not in page.url


def test_a_lost_connection_is_said_and_healed(browser, small):
    with page_on(browser, small.rig.url) as page:
        settled(page)
        page.route("**/api/v1/live", lambda route: route.abort())
        small.call(small.rig.drop_listeners)
        expect(page.locator("#live")).to_contain_text("connection lost")
        page.unroute("**/api/v1/live")
        expect(page.locator("#live")).to_have_text("Live", timeout=15000)
        page.evaluate("console.clear()")


def test_every_part_of_the_console_is_small_and_ours():
    static = Path(__file__).parents[2] / "controlplane" / "console" / "static"
    for path in static.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert len(text.splitlines()) < 400, path
            for line in text.splitlines():
                assert "http://" not in line.replace("http://www.w3.org/", ""), (path, line)
                assert "https://" not in line, (path, line)
                assert "innerHTML" not in line or line.strip().startswith("//"), (path, line)


def test_every_mark_of_an_event_is_in_a_font_of_debian():
    """One that is not is an empty box, and there are no fonts of ours."""
    if shutil.which("fc-list") is None:
        pytest.skip("fontconfig is not installed")
    for mark in {*MARKS.values(), "•"}:
        fonts = ["fc-list", f":charset={ord(mark):x}", "family"]
        assert "DejaVu Sans" in subprocess.run(fonts, capture_output=True, text=True, check=True).stdout, mark
