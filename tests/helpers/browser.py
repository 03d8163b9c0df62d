"""A real Chromium, and what a person does with the studio's page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from helpers.required import in_ci

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = 60_000
"""Milliseconds that the page may take on a busy machine."""


def find_browser() -> str:
    """Return the path of Chromium; skip the test, or fail it in CI, where there is none.

    Where GUIDESTAR_NO_BROWSER is set, because none can be installed, it is skipped in CI too.
    """
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        text = "there is no Chromium here (apt-get install chromium)"
        needed = in_ci() and not os.environ.get("GUIDESTAR_NO_BROWSER")
        (pytest.fail if needed else pytest.skip)(text)
    return str(found)


@contextmanager
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    path = find_browser()
    with sync.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


class Visit:
    """One visit of the page."""

    def __init__(
        self, browser: Any, url: str, query: str = "", *, patience: int = READY, **context: Any
    ) -> None:
        context = {"viewport": {"width": 1280, "height": 800}, **context}
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page = page = self.context.new_page()
        page.set_default_timeout(patience)
        self.url, self.asked, self.errors = url, [], []
        page.on("request", lambda r: self.asked.append(r.url))
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.open(query)

    def open(self, query: str = "") -> None:
        self.page.goto(f"{self.url}/studio/{query and '?'}{query}")
        self.page.wait_for_selector(".gs-plan svg")
        self.page.wait_for_function("location.search.includes('model=')")

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: Any) -> None:
        self.context.close()

    @property
    def text(self) -> str:
        return self.page.input_value("#gs-guidance textarea")

    def write(self, text: str) -> None:
        self.page.fill("#gs-guidance textarea", text)

    def until(self, script: str, *given: Any) -> None:
        self.page.wait_for_function(script, arg=list(given))

    def until_text(self, text: str) -> None:
        self.until("([t]) => document.querySelector('#gs-guidance textarea').value === t", text)

    def until_address(self, part: str) -> None:
        self.until("([t]) => location.search.includes(t)", part)

    def slide(self, index: int, name: str, value: float) -> None:
        """Move a slider of the builder, as a hand does."""
        slider = f'#gs-controls input[type=range][data-index="{index}"][data-name="{name}"]'
        self.page.locator(slider).evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }",
            value,
        )

    def tab(self, name: str) -> None:
        self.page.click(f"button[role=tab]:has-text('{name}')")

    def done(self, where: str = "#gs-state") -> None:
        self.page.wait_for_selector(f"{where} .gs-done")

    def make(self) -> list[str]:
        """Make pictures, and return them as the page has them."""
        self.page.evaluate(
            "document.querySelector('#gs-state .gs-done')?.classList.remove('gs-done')"
        )
        self.page.click("#gs-run")
        self.done()
        self.page.wait_for_selector("#gs-pictures figure a")
        return self.pictures()

    def pictures(self, where: str = "#gs-pictures") -> list[str]:
        """Return the pictures that are shown, in base64."""
        sources = self.page.eval_on_selector_all(f"{where} img", "images => images.map(i => i.src)")
        return [s.partition(",")[2] for s in sources]
