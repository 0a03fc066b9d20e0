"""What people look at, looked at in headless Chromium: a study's report, and MLflow's UI on ten of its trials."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.calls import call_here
from support.manifests import make_manifest

from study.config.plan import Design, Plan
from study.config.search_space import Budget, Float, Int, Pruner, Resources, SearchSpace
from study.data.images import Dataset
from study.report.__main__ import main
from study.report.render import write_report
from study.results.metrics import EpochResult, Evaluation
from study.results.record import Record
from study.tracking.client import connect, local_uri
from study.tracking.tracker import Tracker

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,  # start a browser and MLflow's server
    pytest.mark.filterwarnings("ignore"),  # of MLflow and SQLAlchemy
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER) and "STUDY_NEEDS_BROWSER" not in os.environ,
        reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
    ),
]
OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
]  # fmt: skip
WAIT_S = 60


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from selenium import webdriver

    assert CHROMIUM and DRIVER, "chromium and chromedriver must be installed where STUDY_NEEDS_BROWSER is set"
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def record(tmp_path, make_recipe) -> Iterator[Record]:
    """A search of ten trials, the seventh of them the best, three of them pruned."""
    domains = {"lr": Float(1e-5, 1e-2, log=True), "unfreeze_depth": Int(0, 3)}
    space = SearchSpace("pets", tmp_path, domains, make_recipe(), Budget(10), Pruner("none"), Resources())
    manifest = make_manifest(Design("search", (space.base,), space, 1))
    record = Record.create(tmp_path / "mlruns" / "studies" / "one", manifest)
    record.add([Plan(None, "search", replace(space.base, unfreeze_depth=1), 0)])
    for number in range(10):
        plan = record.next_trial()
        right = 10 if number == 6 else number % 4
        for epoch in (1, 2):
            confusion = [[5 + right, 5 - right if right < 5 else 0], [5, 5]]
            result = EpochResult(epoch, 2.0 / epoch, 3.0, 10.0, val_loss=1.0, val_confusion=confusion)
            record.epoch(plan, result)
            if number in (2, 4, 8):
                break
        record.prune(plan, "pruned") if number in (2, 4, 8) else record.complete(plan)
    yield record
    record.close()


@pytest.fixture
def baseline(tmp_path, make_recipe) -> Iterator[Record]:
    """A baseline of two tested models, of ten classes and a long name."""
    classes = [f"class {index}" for index in range(10)]
    recipes = tuple(make_recipe(model=model) for model in ("resnet18", "vgg11"))
    manifest = make_manifest(Design("baseline", recipes), classes=tuple(classes))
    record = Record.create(tmp_path / "mlruns" / "studies" / f"two-{'long' * 15}", manifest)
    record.add(Plan(None, "baseline", recipe, 0) for recipe in recipes)
    for right in (9, 10):
        plan = record.next_trial()
        record.facts(plan, {"parameters": 11, "trainable_parameters": 10})
        for epoch in (1, 2):
            record.epoch(plan, EpochResult(epoch, 2.0 / epoch, 3.0, 10.0))
        predictions = [index if index < right else 0 for index in range(10)]
        confusion = np.zeros((10, 10), int)
        confusion[range(10), predictions] = 1
        record.tested(plan, Evaluation(1.0, confusion.tolist(), predictions))
        record.complete(plan)
    yield record
    record.close()


@pytest.fixture
def report(record, make_images, browser) -> str:
    """The address of the study's report, with an empty console."""
    train, test = make_images(16, classes=2), make_images(8, classes=2, seed=1)
    dataset = Dataset("pets", ("cat", "dog"), train, test, 1.0)
    browser.get_log("browser")
    return write_report(record, dataset).as_uri()


@pytest.fixture
def baseline_report(baseline, make_images, browser) -> str:
    """The address of the baseline's report, with an empty console."""
    images = make_images(10, classes=10)
    browser.get_log("browser")
    dataset = Dataset("pets", tuple(baseline.manifest.classes), images, images, 1.0)
    return write_report(baseline, dataset).as_uri()


@pytest.fixture
def comparison(record, baseline, browser, tmp_path, monkeypatch) -> str:
    """The address of the page on both studies, with an empty console."""
    monkeypatch.chdir(tmp_path)
    assert main([baseline.name, record.name]) == 0
    browser.get_log("browser")
    return (baseline.directory / "comparison.html").as_uri()


@pytest.fixture
def resize(browser) -> Iterator[Callable[..., None]]:
    """Gives the browser a screen of some width in pixels, for the time of a test."""

    def resize(width: int, *, mobile: bool = False) -> None:
        screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": mobile}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    yield resize
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def errors_of(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def column(browser, heading: str, place: int = -1) -> list[str]:
    """The cells under a heading of a sortable table, by default the last, which holds every trial."""
    table = browser.find_elements("css selector", "table.sortable")[place]
    headings = [cell.text.strip(" ↑↓") for cell in table.find_elements("css selector", "th")]
    place = headings.index(heading) + 1
    return [cell.text for cell in table.find_elements("css selector", f"tbody td:nth-child({place})")]


def press(browser, heading: str, place: int = -1) -> str:
    """Press a heading of a sortable table, and return how it says that the table is sorted."""
    table = browser.find_elements("css selector", "table.sortable")[place]
    buttons = table.find_elements("css selector", "th button")
    (button,) = (button for button in buttons if button.text.strip(" ↑↓") == heading)
    browser.execute_script("arguments[0].scrollIntoView()", button)
    button.click()
    return button.find_element("xpath", "..").get_attribute("aria-sort")


def test_report_opens_from_disk_with_all_pictures(browser, baseline_report):
    browser.get(baseline_report)
    pictures = browser.find_elements("css selector", "img")
    assert pictures
    for picture in pictures:
        browser.execute_async_script("arguments[0].decode().then(() => arguments[1](true))", picture)
        assert int(picture.get_property("naturalWidth")) > 0
        assert picture.get_attribute("alt")
    assert errors_of(browser) == []


def test_the_report_sorts_figures_from_the_largest_on_and_back(browser, report):
    browser.get(report)
    assert column(browser, "trial") == [f"#{number}" for number in range(10)]
    assert press(browser, "validation accuracy (%)") == "descending"
    found = [float(cell) for cell in column(browser, "validation accuracy (%)")]
    assert found == sorted(found, reverse=True)
    assert column(browser, "trial")[0] == "#6"
    assert press(browser, "validation accuracy (%)") == "ascending"
    assert [float(cell) for cell in column(browser, "validation accuracy (%)")] == sorted(found)
    assert press(browser, "lr") == "descending"
    rates = [float(cell) for cell in column(browser, "lr")]
    assert rates == sorted(rates, reverse=True)
    assert len(browser.find_elements("css selector", "th[aria-sort]")) == 1
    assert errors_of(browser) == []


def test_the_report_sorts_text_from_a_to_z_and_back(browser, report):
    browser.get(report)
    assert press(browser, "state") == "ascending"
    assert column(browser, "state") == ["complete"] * 7 + ["pruned"] * 3
    assert press(browser, "state") == "descending"
    assert column(browser, "state") == ["pruned"] * 3 + ["complete"] * 7
    assert press(browser, "reason") == "ascending"
    assert press(browser, "reason") == "descending"
    reasons = column(browser, "reason")
    assert reasons == [*sorted(filter(None, reasons), reverse=True), *[""] * reasons.count("")]  # none stays last
    assert 0 < reasons.count("") < len(reasons)


def test_the_report_sorts_trials_by_their_number(browser, tmp_path, make_recipe):
    recipes = tuple(make_recipe(lr=10.0**-number) for number in range(12))
    record = Record.create(tmp_path / "studies" / "one", make_manifest(Design("baseline", recipes)))
    record.add(Plan(None, "baseline", recipe, 0) for recipe in recipes)
    browser.get(write_report(record, None).as_uri())
    record.close()
    press(browser, "trial")
    assert column(browser, "trial") == [f"#{number}" for number in range(12)]
    press(browser, "trial")
    assert column(browser, "trial") == [f"#{number}" for number in reversed(range(12))]


def test_the_report_sorts_an_interval_by_its_lower_end(browser, baseline_report):
    browser.get(baseline_report)
    assert press(browser, "95 % interval", 0) == "descending"
    lower = [float(cell.partition(" to ")[0]) for cell in column(browser, "95 % interval", 0)]
    assert lower[0] > lower[1]
    assert press(browser, "95 % interval", 0) == "ascending"
    assert [float(cell.partition(" to ")[0]) for cell in column(browser, "95 % interval", 0)] == lower[::-1]


def test_confusion_matrix_of_ten_classes_has_its_own_size(browser, resize, baseline_report):
    browser.get(baseline_report)
    width = browser.find_element("css selector", "svg.matrix").size["width"]
    resize(390, mobile=True)
    browser.get(baseline_report)
    assert browser.find_element("css selector", "svg.matrix").size["width"] == width > 400


def test_pointing_at_a_trial_marks_it_everywhere(browser, report):
    from selenium.webdriver import ActionChains

    browser.get(report)
    dot = browser.find_element("css selector", "circle[data-trial='6']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", dot)
    ActionChains(browser).move_to_element(dot).perform()
    marked = browser.find_elements("css selector", ".active")
    assert {part.get_attribute("data-trial") for part in marked} == {"6"}
    assert {part.tag_name for part in marked} == {"circle", "polyline", "tr"}
    assert browser.find_element("css selector", ".tip").text.startswith("#6 resnet18")


def test_wide_tables_say_on_a_phone_that_they_scroll(browser, resize, report):
    resize(390, mobile=True)
    browser.get(report)
    hint = "return getComputedStyle(arguments[0], '::before').content"
    table = browser.find_elements("css selector", ".wide:has(table.sortable)")[-1]
    assert "Scroll sideways" in browser.execute_script(hint, table)
    narrow = browser.find_element("css selector", ".wide:not(:has(table.sortable)):has(th)")
    assert browser.execute_script(hint, narrow) == "none"


@pytest.mark.parametrize("page", ["report", "baseline_report", "comparison"])
def test_pages_fit_a_desktop_without_an_error(browser, page, request):
    browser.get(request.getfixturevalue(page))
    width = browser.execute_script("return document.documentElement.clientWidth")
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    assert browser.find_elements("css selector", "svg[role=img]")
    assert errors_of(browser) == []


def test_label_of_the_intervals_wraps_on_a_phone(browser, resize, baseline_report):
    resize(390, mobile=True)
    browser.get(baseline_report)
    label = browser.find_element("css selector", ".drawing .label")
    assert "test accuracy (%)" in label.text
    assert label.rect["x"] >= 0 and label.rect["x"] + label.rect["width"] <= 390


@pytest.mark.parametrize("page", ["report", "baseline_report", "comparison"])
def test_pages_fit_a_phone_without_an_error(browser, resize, page, request):
    resize(390, mobile=True)
    browser.get(request.getfixturevalue(page))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert all(text.size["width"] > 250 for text in browser.find_elements("css selector", ".facts dd"))
    assert errors_of(browser) == []


def test_the_report_cuts_nothing_on_paper(browser, resize, report):
    resize(718)  # A4 less its margins
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.get(report)
        for table in browser.find_elements("css selector", "table"):
            assert table.size["width"] <= 718
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def luminance(colour: str) -> float:
    numbers = [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    return float(np.dot(numbers, (0.2126, 0.7152, 0.0722)) / 255)


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_report_is_light_or_dark_as_preferred(browser, report, scheme, is_dark):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(report)
    style = "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    page, ink = map(luminance, browser.execute_script(style))
    assert (page < ink) == is_dark
    assert abs(page - ink) > 0.7


@pytest.fixture
def ui(record, tmp_path) -> Iterator[str]:
    """The address of the experiment with the ten trials in MLflow's UI."""
    client = connect(local_uri(tmp_path / "mlruns"), verbose=False)
    tracker = Tracker(
        client, record, artifacts=tmp_path / "mlruns" / "artifacts", samples=lambda plan: b"", call=call_here
    )
    for trial in record.trials():
        tracker.on_change(trial.plan)
    assert tracker.finish("FINISHED", {}, {}, "Found.") == 0
    experiment = client.get_experiment_by_name("pets").experiment_id
    command = [sys.executable, "-m", "study.ui", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        address = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
        yield f"{address}/#/experiments/{experiment}/runs"
        process.send_signal(signal.SIGINT)


def wait_for(browser, condition):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import WebDriverWait

    def holds(driver):
        with contextlib.suppress(StaleElementReferenceException):
            return condition(driver)

    return WebDriverWait(browser, WAIT_S).until(holds)


def shows(*texts: str):
    return lambda driver: all(text in driver.find_element("css selector", "body").text for text in texts)


def click(browser, selector: str, text: str = "") -> None:
    """Click the first thing that matches and says exactly this, once it is there."""

    def find(driver):
        found = driver.find_elements("css selector", selector)
        return next((one for one in found if not text or one.text.strip() == text), None)

    def attempt(driver) -> bool:
        one = find(driver)
        if one is None:
            return False
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", one)
        one.click()
        return True

    wait_for(browser, attempt)


def test_mlflows_table_has_the_columns_of_the_link(browser, ui, record):
    browser.get(f"{ui}?viewStateShareKey=study")
    wait_for(browser, shows(record.name, "Duration", "train_loss", "device_s"))
    assert "Source" not in browser.find_element("css selector", ".ag-header").text


def test_mlflows_ui_compares_trials_and_shows_a_confusion_matrix(browser, ui, record, tmp_path):
    """The way of somebody who only ever clicks."""
    browser.get(ui)
    titles = [trial.plan.short_title for trial in record.trials()]

    wait_for(browser, shows(record.name))
    click(browser, ".ag-row button[class*=icon-only]")  # unfolds the study
    wait_for(browser, shows(*titles))
    rows = browser.find_elements("css selector", ".ag-pinned-left-cols-container .ag-row")
    trials = [row for row in rows if any(title in row.text for title in titles)]
    assert len(trials) == 10
    for row in trials:
        row.find_element("css selector", ".ag-selection-checkbox input").click()
    click(browser, "button", "Compare")

    wait_for(browser, shows("Comparing 10 Runs", "Parallel Coordinates Plot", "unfreeze_depth", *titles))
    wait_for(browser, lambda driver: driver.find_elements("css selector", ".js-plotly-plot .parcoords"))
    wait_for(browser, shows("train_loss", "val_accuracy"))  # the table shows its first rows until it is scrolled
    click(browser, "a", "val_accuracy")
    wait_for(browser, lambda driver: len(driver.find_elements("css selector", ".scatterlayer .trace")) >= 10)
    wait_for(browser, shows(*(f"{title} (val_accuracy)" for title in titles)))

    click(browser, "a", titles[6])
    click(browser, "[role=tab]", "Artifacts")
    click(browser, "div", "confusion_matrix.png")
    shown = wait_for(browser, lambda driver: driver.find_elements("css selector", "img[alt='confusion_matrix.png']"))
    run = browser.current_url.partition("/runs/")[2].partition("/")[0]
    file = tmp_path / "mlruns" / "artifacts" / "pets" / run / "artifacts" / "confusion_matrix.png"
    width = int.from_bytes(file.read_bytes()[16:20], "big")
    wait_for(browser, lambda driver: int(shown[0].get_property("naturalWidth")) == width)
