"""A browser for the web page."""

from __future__ import annotations

import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """A function that opens a page in a browser which records the addresses it asks for."""
    from hypernet_d2.cli import web

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    pytest.importorskip("gradio", reason="the page needs Gradio")
    sync_api = pytest.importorskip("playwright.sync_api", reason="it drives the browser")
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    opened = []

    def open_page(blocks):
        _, url, _ = web.launch(blocks, "127.0.0.1", None, prevent_thread_lock=True, quiet=True)
        opened.append(blocks)
        page.elsewhere, page.address = [], url
        page.on(
            "request",
            lambda request: (
                request.url.startswith((url, "data:", "blob:"))
                or page.elsewhere.append(request.url)
            ),
        )
        page.goto(url)
        return page

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        sync_api.expect.set_options(timeout=60_000)  # a busy machine takes its time
        yield open_page
        browser.close()
        for blocks in opened:
            blocks.close()
