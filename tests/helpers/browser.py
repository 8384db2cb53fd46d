"""A headless Chromium for tests of pages; skips where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect, sync_playwright

QUIET = (
    "--no-sandbox --disable-gpu --no-first-run --disable-quic --disable-sync "
    "--disable-background-networking --disable-component-update"
)


@contextmanager
def open_browser() -> Iterator[Page]:
    """A new page of the system's Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=QUIET.split())
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield page
        browser.close()
