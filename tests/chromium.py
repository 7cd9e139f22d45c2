"""A headless browser for the tests that look at pages. Skipped where no Chromium or Chrome is found (METAUG_CHROME names one)."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROME = os.environ.get("METAUG_CHROME") or next(filter(None, map(shutil.which, NAMES)), None)
NEEDS_CHROME = pytest.mark.skipif(not CHROME, reason="no Chromium or Chrome found (METAUG_CHROME may name one)")
QUIET = ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--disable-quic", "--no-first-run"]


@contextmanager
def open_page(width: int, height: int) -> Iterator[Any]:
    """A page of a browser, so many pixels wide and high."""
    from playwright.sync_api import sync_playwright

    sandbox = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []  # root cannot have one
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROME, args=QUIET + sandbox)
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()
