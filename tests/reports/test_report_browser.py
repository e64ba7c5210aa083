"""The report as a browser draws it."""

import json
import shutil
from pathlib import Path

import pytest
import report_records

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()),
        reason="no browser here: install Debian's chromium and chromium-driver",
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="install demur[dev] for selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def resize(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def page(browser, written):
    resize(browser, 1200)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get((written["calibration"] / "report.html").as_uri())
    return browser


def count(page, selector):
    return page.execute_script("return document.querySelectorAll(arguments[0]).length", selector)


def text_of(page, selector):
    return page.execute_script("return document.querySelector(arguments[0]).innerText", selector)


def drawn_box(page, selector):
    script = "const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.width, b.height]"
    return page.execute_script(script, selector)


def test_figures_are_drawn(page):
    assert count(page, "figure svg[role=img]") == 4
    for name in ("rates", "candidates", "projections", "lambda"):
        width, height = drawn_box(page, f"#{name}-chart")
        assert width > 800
        assert height > 150


def test_heat_maps_have_every_cell_and_one_mark_each(page):
    for panel in ("bypass", "induce", "kl"):
        assert count(page, f"[id^='candidates-cell-{panel}-'] path") == 30
        assert count(page, f"#candidates-selected-{panel} path") == 1
        mark = drawn_box(page, f"#candidates-selected-{panel}")
        cell = drawn_box(page, f"[id='candidates-cell-{panel}-3--1']")
        assert mark == pytest.approx(cell, abs=2)
    same_place = """
        const box = id => document.getElementById(id).getBoundingClientRect();
        const [mark, cell] = [box('candidates-selected-kl'), box('candidates-cell-kl-3--1')];
        return Math.hypot(mark.x - cell.x, mark.y - cell.y)"""
    assert page.execute_script(same_place) < 2


def test_rejected_cells_are_paler_than_others(page):
    script = "return Number(getComputedStyle(document.getElementById(arguments[0]).querySelector('path')).opacity)"
    for one in report_records.candidates().refusal:
        opacity = page.execute_script(script, f"candidates-cell-kl-{one.layer}-{one.position}")
        assert opacity == (0.25 if one.rejected_by else 1)


def test_tables_say_what_the_records_say(page):
    results = text_of(page, "#results table")
    for piece in ("True refusal rate", "443/450", "96.8 to 99.2 %", "-29.3 points", "-33.8 to -24.9", "< 0.001"):
        assert piece in results
    assert text_of(page, ".verdict .badge") == "gate: pass"
    assert text_of(page, "#gate tbody tr:nth-child(3) .badge") == "pass"
    assert "437/450" in text_of(page, "#mechanism table")
    assert "chosen" in text_of(page, "#lambda tbody tr:nth-child(5)")
    assert "demur calibrate example/tiny-chat-6L --out 'my run'" in text_of(page, "#provenance")
    assert count(page, "table:not(:has(caption))") == 0
    assert count(page, ".example") == 12 + 4 + 3


def test_foreign_text_is_shown_and_not_run(page):
    assert text_of(page, ".example .prompt .foreign") == report_records.SCRIPT_PROMPT
    assert page.execute_script("return window.hacked === undefined")
    assert count(page, "script") == 0
    labels = page.execute_script("return [...document.querySelectorAll('svg text')].map(one => one.textContent)")
    assert "-2 $x$ <script>_^" in labels


@pytest.mark.parametrize("width", [400, 1200])
def test_page_does_not_scroll_sideways(page, width):
    resize(page, width)
    widths = page.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1] == width


def test_console_is_quiet_and_nothing_is_fetched(page):
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert any(url.endswith("report.html") for url in asked), "the log sees requests"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(page, scheme):
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    script = """
        const light = colour => {
          const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const card = light(getComputedStyle(document.querySelector('section')).backgroundColor);
        const ratio = value => (Math.max(value, card) + 0.05) / (Math.min(value, card) + 0.05);
        const tick = document.querySelector('#rates-chart text');
        return [ratio(light(getComputedStyle(document.querySelector('section p')).color)),
                ratio(light(getComputedStyle(tick).fill)),
                ratio(light(getComputedStyle(document.querySelector('figcaption')).color))]"""
    assert min(page.execute_script(script)) >= 4.5  # WCAG AA for text
