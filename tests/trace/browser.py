"""A headless Chromium, where the machine has one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def find_browser() -> tuple[str, str]:
    """The paths of Chromium and its driver; skips the test where one is missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium, chromium-driver)")
    return browser, driver


@contextmanager
def chromium() -> Iterator[Any]:
    """A driver that logs what the page says and whatever it asks the network for."""
    selenium = pytest.importorskip("selenium.webdriver")
    browser, driver = find_browser()
    options = selenium.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "headless=new",
        "no-sandbox",
        "disable-dev-shm-usage",
        "window-size=1300,1000",
    ):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = selenium.ChromeService(driver)
    try:
        opened = selenium.Chrome(options=options, service=service)
    except pytest.importorskip("selenium.common.exceptions").WebDriverException as error:
        pytest.skip(f"{browser} does not start here: {error.msg}")
    try:
        yield opened
    finally:
        opened.quit()


def said(driver: Any) -> list[str]:
    """What the page wrote to the console, errors and refused requests among it."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requested(driver: Any) -> list[str]:
    """Every address that was asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def open_page(driver: Any, path: Path) -> None:
    driver.get(path.as_uri())
    assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"
