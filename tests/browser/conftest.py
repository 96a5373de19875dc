"""One Chromium for all browser tests, offline; without it they are skipped aloud."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.report.page import render_report

SAMPLE = Path(__file__).parents[1] / "common" / "report" / "summary.json"
REAL_RUN_VARIABLE = "FEDWARD_TEST_RUN"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium():
    """A headless browser with an empty profile."""
    path = next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"chromium not found: none of {', '.join(CHROMIUM_NAMES)} is on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="chromium not found: playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def real_run(tmp_path_factory):
    """The out directory of the main job: the one that FEDWARD_TEST_RUN names, else a fresh `fedward simulate`."""
    if REAL_RUN_VARIABLE in os.environ:
        return Path(os.environ[REAL_RUN_VARIABLE])
    out = tmp_path_factory.mktemp("real") / "run"
    command = [sys.executable, "-c", "from common.cli import main; main()", "simulate", "breast", "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return out


@pytest.fixture(scope="session", params=["sample", "real run"])
def report_directory(request, tmp_path_factory):
    """A directory with `summary.json` and `report.html`: a rendered sample, and the main job's."""
    if request.param == "real run":
        return request.getfixturevalue("real_run")
    directory = tmp_path_factory.mktemp("sample")
    shutil.copy(SAMPLE, directory / "summary.json")
    html = render_report(json.loads(SAMPLE.read_text(encoding="utf-8")))
    (directory / "report.html").write_text(html, encoding="utf-8")
    return directory


@pytest.fixture(params=[1280, 390], ids=["1280px", "390px"])
def width_px(request):
    """A desk and a phone."""
    return request.param


@pytest.fixture
def colours(request):
    """The colour scheme; light unless a test asks for another."""
    return getattr(request, "param", "light")


@pytest.fixture
def page(chromium, width_px, colours):
    """An offline tab that keeps in `page.seen` every request beyond the document, console message and page error."""
    context = chromium.new_context(
        viewport={"width": width_px, "height": 844}, color_scheme=colours, offline=True, service_workers="block"
    )
    tab = context.new_page()
    tab.seen = []
    tab.on("request", lambda found: tab.seen.append(found.url) if not found.is_navigation_request() else None)
    tab.on("console", lambda message: tab.seen.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: tab.seen.append(str(error)))
    yield tab
    context.close()
