"""The console in a real browser at ten thousand nodes."""

from __future__ import annotations

import json
import time

import pytest
from playwright.sync_api import expect

from tests.console.browser import page_on, settled, tile, violations
from tests.console.conftest import Background
from tests.console.rig import join
from tests.waiting import patient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Ten thousand nodes."""
    with Background(tmp_path_factory.mktemp("many")) as background:
        background.do(background.rig.define(10_000))
        background.do(background.rig.fill(10_000))
        yield background


def test_ten_thousand_nodes_are_drawn_and_follow_a_join(browser, many, record_property):
    rig = many.rig
    with page_on(browser, rig.url) as page:
        started = time.monotonic()
        page.goto(f"{rig.url}/#/")
        page.reload()
        expect(tile(page, "Nodes")).to_have_text("10,000", timeout=20000)
        first_s = time.monotonic() - started
        settled(page)
        paint_ms = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
        before = time.monotonic()
        many.do(rig.send(join(10_001)))
        expect(tile(page, "Nodes")).to_have_text("10,001")
        update_s = time.monotonic() - before
        longest_ms = page.evaluate(
            """() => new Promise((resolve) => {
                let last = performance.now(), worst = 0, count = 0;
                const step = (now) => {
                    worst = Math.max(worst, now - last);
                    last = now;
                    if (++count < 120) requestAnimationFrame(step); else resolve(worst);
                };
                requestAnimationFrame(step);
            })"""
        )
        figures = {
            "first contentful paint (ms)": round(paint_ms or 0),
            "10,000 nodes shown after (s)": round(first_s, 2),
            "a join shown after (s)": round(update_s, 2),
            "longest frame (ms)": round(longest_ms),
        }
        for name, value in figures.items():
            record_property(name, value)
        print(json.dumps(figures))
        assert first_s < patient(6)
        assert update_s < patient(2)
        assert violations(page) == []
        page.get_by_role("link", name="Nodes", exact=True).click()
        expect(page.locator("main .head")).to_contain_text("10,001")
        assert page.locator("tbody tr").count() < 80, "only what is in view is in the document"
        filtering = page.get_by_label("Filter by name, address or range")
        name, held = next(iter(many.rig.replica.state.owned.items()))
        filtering.fill(held.cidr.partition("/")[0])
        expect(page.get_by_label("Whose the address is")).to_contain_text(f"range {held.cidr} of node {name}")
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
        filtering.fill("idc-999")
        expect(page.get_by_label("Whose the address is")).to_have_text("")
        expect(page.locator("tbody tr")).not_to_have_count(0)
        assert all("idc-999" in text for text in page.locator("tbody tr td:first-child").all_inner_texts())
        assert violations(page) == []


def test_ten_thousand_nodes_in_the_past(browser, many):
    with page_on(browser, many.rig.url, "/#/?at=10002") as page:
        expect(tile(page, "Nodes")).to_have_text("5,000", timeout=20000)
        expect(page.locator("#past")).to_contain_text("10,002")
