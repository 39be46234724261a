"""Fixtures of the browser tests. Without a Chromium they skip; with FLOWBOOK_BROWSER_TESTS=required they fail then.

Pictures go to $FLOWBOOK_SCREENSHOTS, else to a folder that pytest keeps for the last three runs.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.browser.lab import ARGUMENTS, CHROMIUM, Lab, Server
from tests.conftest import end_processes_of


@pytest.fixture(scope="session")
def chromium() -> str:
    if CHROMIUM:
        return CHROMIUM
    message = "no Chromium here (apt-get install chromium); the browser tests did not run"
    if os.environ.get("FLOWBOOK_BROWSER_TESTS") == "required":
        pytest.fail(message)
    pytest.skip(message)


# Package scope: Playwright keeps an event loop in the main thread while it is open, and the tests after these use asyncio.run.
@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("FLOWBOOK_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="package")
def server(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("lab"))
    yield started
    started.close()
    end_processes_of(started.store)  # engines whose run a test left open


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Says of a failed test what its page showed, while the page is still there."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.when == "call" and report.failed and isinstance(lab, Lab):
        report.sections.append(("the page", lab.last_words(item.name)))
    return report


@pytest.fixture
def lab(server: Server, browser: object, pictures: Path) -> Iterator[Lab]:
    page = Lab(server, browser, pictures)  # type: ignore[arg-type]
    yield page
    page.close()
