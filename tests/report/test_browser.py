"""What a reader's browser makes of a report: run in a real, headless Chromium."""

import base64
import os
import shutil
from pathlib import Path

import pytest

from longarc.report.html import write_report

pytestmark = pytest.mark.browser

SCRIPT = "<script>alert(1)</script>"


def find(*names: str) -> str | None:
    return next((found for name in names if (found := shutil.which(name))), None)


CHROMIUM = find("chromium", "chromium-browser", "google-chrome")
DRIVER = find("chromedriver")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its chromedriver on this machine")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER, env=dict(os.environ)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(run_folder, hostile_run, multi_label_run, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    twin = Path(shutil.copytree(hostile_run, folder / SCRIPT.replace("/", "-")))
    return {
        "run": write_report(run_folder, folder / "run.html"),
        "hostile": write_report(hostile_run, folder / "hostile.html"),
        "several": write_report(multi_label_run, folder / "several.html"),
        "comparison": write_report([hostile_run, twin], folder / "comparison.html"),
    }


PAGES = ["run", "hostile", "several", "comparison"]


def open_page(browser, path: Path, width: int) -> list[str]:
    """Open at a width; the addresses that the page asked for."""
    import json

    browser.get_log("performance")
    browser.get_log("browser")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(path.as_uri())
    sent = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [
        m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"
    ]


@pytest.mark.parametrize("name", PAGES)
def test_no_request_no_error_and_no_sideways_scrolling(browser, pages, name):
    for width in (390, 768, 1200):
        asked = open_page(browser, pages[name], width)
        assert asked == [pages[name].as_uri()] or set(asked) <= {pages[name].as_uri(), "data:,"}
        assert browser.get_log("browser") == []
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0


@pytest.mark.parametrize("name", ["hostile", "comparison"])
def test_markup_in_the_data_is_text(browser, pages, name):
    from selenium.common.exceptions import NoAlertPresentException

    open_page(browser, pages[name], 1200)
    with pytest.raises(NoAlertPresentException):
        browser.switch_to.alert.accept()
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, "script") == 0
    assert browser.execute_script(count, "img") == 0
    handlers = """
      const handles = e => [...e.attributes].some(a => a.name.startsWith('on'));
      return [...document.querySelectorAll('*')].filter(handles).length;
    """
    assert browser.execute_script(handlers) == 0
    text = browser.execute_script("return document.body.textContent")
    assert "hostile <b> & 'co'" in text
    assert f"{SCRIPT}.csv" in text
    if name == "hostile":
        assert f"{SCRIPT} Permissive" in text  # a label, in the tables
        assert f"{SCRIPT}�<img src=x onerror=alert(2)>" in text  # a document
        assert f"</pre>{SCRIPT}" in text  # an option
        drawn = browser.execute_script(
            "return [...document.querySelectorAll('svg text')].map(e => e.textContent).join('|')"
        )
        assert "<script>alert(1)" in drawn


def test_a_phone_gets_the_narrow_charts(browser, pages):
    def shown() -> list[bool]:
        return browser.execute_script(
            "return ['.wide', '.narrow'].map(s => document.querySelector(s).offsetWidth > 0)"
        )

    open_page(browser, pages["run"], 390)
    assert shown() == [False, True]
    open_page(browser, pages["run"], 1200)
    assert shown() == [True, False]


def test_no_text_of_a_chart_is_cut_off(browser, pages):
    outside = """
      const cut = [];
      for (const svg of document.querySelectorAll('figure svg')) {
        const box = svg.getBoundingClientRect();
        if (!box.width) continue;
        for (const text of svg.querySelectorAll('text')) {
          const t = text.getBoundingClientRect();
          if (t.width && (t.left < box.left - 2 || t.right > box.right + 2 ||
              t.top < box.top - 2 || t.bottom > box.bottom + 2)) cut.push(text.textContent);
        }
      }
      return cut;
    """
    for name in PAGES:
        for width in (390, 1200):
            open_page(browser, pages[name], width)
            assert browser.execute_script(outside) == [], (name, width)


def test_it_prints(browser, pages):
    open_page(browser, pages["run"], 1200)
    options = {"printBackground": True, "preferCSSPageSize": True}
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", options)["data"])
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 4
