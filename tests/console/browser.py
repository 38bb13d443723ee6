"""A real browser (Debian's Chromium) on a console, watched for everything that must not happen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = os.environ.get("ISTHMUS_CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
expect.set_options(timeout=30_000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, with a profile of its own that is thrown away."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


class Watch:
    """What a page did that it must not do."""

    def __init__(self, page: Page, origin: str) -> None:
        self.complaints: list[str] = []
        self.outside: list[str] = []
        self._origin = urlsplit(origin).netloc
        page.on("console", lambda message: self._say(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", lambda request: self._asked(request.url))

    def _say(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.complaints.append(f"{kind}: {text}")

    def _asked(self, url: str) -> None:
        if urlsplit(url).netloc != self._origin and not url.startswith(("data:", "blob:")):
            self.outside.append(url)


@contextmanager
def page_on(
    browser: Browser,
    url: str,
    path: str = "/",
    *,
    theme: str = "light",
    width: int = 1440,
    height: int = 960,
    before: Callable[[Page], object] = lambda _page: None,
) -> Iterator[Page]:
    """A page on the console; leaving the block fails when it complained or asked an outside host.

    ``before`` may prepare the page, for instance hold back an answer, before it asks for anything.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()
    watch = Watch(page, url)
    try:
        before(page)
        page.goto(f"{url}{path}")
        yield page
        assert not watch.complaints, watch.complaints
        assert not watch.outside, watch.outside
    finally:
        context.close()


def violations(page: Page) -> list[str]:
    """What axe finds on the page as it is: rule, impact and the first offender."""
    found = Axe().run(page).response["violations"]
    return [
        f"{item['id']} ({item['impact']}): {item['help']}: {[node['html'][:160] for node in item['nodes'][:3]]}"
        f" {item['nodes'][0].get('failureSummary', '')[:300]}"
        for item in found
    ]


def violations_in_both_themes(page: Page) -> dict[str, list[str]]:
    """What axe finds in each theme; the page follows the system's and is not loaded anew, which costs most."""
    found = {}
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found[theme] = violations(page)
    return {theme: complaints for theme, complaints in found.items() if complaints}


def settled(page: Page) -> None:
    """The console is live and shows something."""
    expect(page.locator("#live")).to_have_text("Live")
    expect(page.locator("main h1").first).to_be_attached()


def tile(page: Page, label: str):
    return page.locator(".tile", has=page.get_by_text(label, exact=True)).locator(".value")
