"""The mesh in a real browser: by site, by node, one pair; now and as it was recorded; a node's own paths."""

from __future__ import annotations

import re

import httpx
import msgspec
import pytest
from playwright.sync_api import expect

from events.protocol.commands import DeclareNetwork
from events.types import Network
from tests.console.browser import page_on, violations, violations_in_both_themes
from tests.console.conftest import Background
from tests.console.rig import join

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def meshed(tmp_path_factory):
    """Eight nodes at two sites, measured; then one that nobody reaches, and reached again."""
    with Background(tmp_path_factory.mktemp("mesh")) as background:
        rig = background.rig
        background.do(rig.define(8))
        background.do(rig.fill(8))
        background.call(rig.measure)
        background.whole = rig.replica.state.sequence
        background.gone = sorted(rig.replica.state.nodes)[2]
        background.do(rig.lose(background.gone))
        background.do(rig.send(DeclareNetwork(network=Network(cidr="192.168.77.0/24", kind="idc"))))
        yield background


def test_a_nodes_events_have_what_was_found_of_its_paths(meshed):
    page = httpx.get(f"{meshed.rig.url}/api/v1/events", params={"entity": meshed.gone}).json()
    assert page["events"][0]["type"] == "path.lost.v1"
    other = min(name for name in meshed.rig.replica.state.nodes if name != meshed.gone)
    page = httpx.get(f"{meshed.rig.url}/api/v1/events", params={"entity": other}).json()
    assert "path.lost.v1" not in {event["type"] for event in page["events"]}


def test_the_matrix_leads_from_sites_to_nodes_to_a_pair(browser, meshed):
    with page_on(browser, meshed.rig.url, "/#/mesh") as page:
        expect(page.locator("main .head .state")).to_have_text("1 finding")
        expect(page.locator(".conditions")).to_contain_text(meshed.gone)
        by_node = page.get_by_role("table", name="Paths between nodes")
        expect(by_node.locator("tbody tr")).to_have_count(8)
        # Seven peers in its row and in its column, and nobody else's.
        expect(by_node.locator("td.heat.lost")).to_have_count(14)
        assert violations(page) == []
        sites = page.get_by_role("table", name="Paths between sites")
        state = meshed.rig.replica.state
        there, here = state.nodes[meshed.gone].site, min(n.site for n in state.nodes.values())
        sites.get_by_role("button", name=f"{here} to {there}").click()
        expect(page).to_have_url(re.compile("#/mesh/sites/"))
        members = sum(node.site in {here, there} for node in state.nodes.values())
        expect(page.get_by_role("table", name="Paths between nodes").locator("tbody tr")).to_have_count(members)
        page.get_by_role("table", name="Paths between nodes").locator("td.lost button").first.click()
        expect(page).to_have_url(re.compile("#/mesh/nodes/"))
        expect(page.locator("main h1")).to_contain_text(meshed.gone)
        expect(page.get_by_role("table", name="Paths", exact=True).locator("tbody tr")).to_have_count(1)
        expect(page.locator("td.heat.lost")).to_have_count(2)
        assert violations(page) == []


def test_the_topology_says_sites_nodes_and_ways(browser, meshed):
    with page_on(browser, meshed.rig.url, "/#/mesh") as page:
        sites = {node.site for node in meshed.rig.replica.state.nodes.values()}
        ways = page.get_by_role("list", name="Ways between sites").locator("li")
        expect(ways).to_have_count(len(sites) * (len(sites) - 1) // 2)
        expect(ways.first).to_contain_text("not encrypted")
        expect(page.get_by_role("list", name="Sites", exact=True).locator("li")).to_have_count(len(sites))
        expect(page.locator("svg.topology circle")).to_have_count(len(sites))
        assert violations_in_both_themes(page) == {}


def test_the_slider_shows_what_was_recorded_then(browser, meshed):
    with page_on(browser, meshed.rig.url, f"/#/mesh?at={meshed.whole}") as page:
        expect(page.locator("main")).to_contain_text("there was none")
        expect(page.locator("td.heat")).to_have_count(0)
        page.goto(f"{meshed.rig.url}/#/mesh?at={meshed.whole + 1}")
        expect(page.locator(".conditions")).to_contain_text(meshed.gone)
        expect(page.locator("main")).to_contain_text("not kept")
        assert violations(page) == []


@pytest.mark.parametrize("width", [1440, 390])
def test_a_nodes_page_has_its_paths_and_the_page_fits_a_phone(browser, meshed, width):
    with page_on(browser, meshed.rig.url, f"/#/nodes/{meshed.gone}", width=width, height=844) as page:
        expect(page.get_by_role("table", name="Paths", exact=True).locator("tbody tr")).to_have_count(7)
        expect(page.get_by_role("list", name="Findings", exact=True)).to_contain_text(meshed.gone)
        for path in (f"nodes/{meshed.gone}", "mesh"):
            page.goto(f"{meshed.rig.url}/#/{path}")
            expect(page.locator("td.heat").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.querySelector('main').scrollWidth") <= width
        assert violations(page) == []


def test_what_is_slower_than_usual_is_seen_with_its_usual(browser, meshed):
    """And a past moment has the matrix of what was recorded then."""
    background, names = meshed, sorted(meshed.rig.replica.state.nodes)
    for _ in range(3):
        background.call(background.rig.measure, lost=(meshed.gone,))
    slow, other = [name for name in names if name != meshed.gone][:2]
    background.call(background.rig.measure, lost=(meshed.gone,), slow=slow, times=20)
    with page_on(browser, meshed.rig.url, "/#/mesh") as page:
        cells = page.get_by_role("table", name="Paths between nodes").locator("td.heat.slow")
        expect(cells).to_have_count(12)  # to and from the six others that answer
        expect(cells.first).to_contain_text("usually")
        assert violations(page) == []
        page.goto(f"{meshed.rig.url}/#/mesh/nodes/{slow}/{other}")
        paths = page.get_by_role("table", name="Paths", exact=True)
        expect(paths.locator("td.heat.slow").first).to_contain_text("usually")
        expect(paths.locator("thead")).to_contain_text("Usually")
        page.goto(f"{meshed.rig.url}/#/mesh?at={meshed.whole + 1}")
        then = page.get_by_role("table", name="Paths between nodes")
        expect(then.locator("tbody tr")).to_have_count(len(names))
        expect(then.locator("td.heat.lost")).to_have_count(2 * (len(names) - 1))
        assert violations(page) == []
    background.call(background.rig.measure, lost=(meshed.gone,))


def test_a_site_of_any_name_is_text_and_can_be_looked_into(browser, started):
    rig = started.rig
    evil = "a~b/c?%<img src=x onerror=window.hurt=1>"
    started.do(rig.define(2))
    started.do(rig.fill(1))
    started.do(rig.send(msgspec.structs.replace(join(2), site=evil)))
    started.call(rig.measure)
    with page_on(browser, rig.url, "/#/mesh") as page:
        page.get_by_role("table", name="Paths between sites").get_by_role("button", name=evil).first.click()
        expect(page.locator("main h1")).to_contain_text("<img src=x")
        expect(page.get_by_role("table", name="Paths between nodes").locator("tbody tr")).to_have_count(2)
        assert page.evaluate("window.hurt") is None
