"""What people look at, looked at in headless Chromium: a study's report, and MLflow's UI on ten of its trials."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from study.config import local_uri
from study.data import Dataset
from study.record import Record
from study.report import write_report
from study.search_space import Budget, Float, Int, Pruner, Resources, SearchSpace
from study.tracking import Tracker, connect
from study.training import EpochResult

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
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
MANIFEST = {
    "data": "pets", "source": "pets", "data_dir": "nowhere", "fraction": 1.0, "seed": 0, "image_size": 32,
    "classes": ["cat", "dog"], "train_images": 16, "val_images": 4, "test_images": 8, "git_commit": None,
    "data_fingerprint": "d" * 16, "split_fingerprint": "s" * 16, "weights": "none", "versions": {"torch": "2"},
}  # fmt: skip
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
    record = Record.create(tmp_path / "mlruns" / "studies" / "one", MANIFEST, space=space)
    record.add([("search", replace(space.base, unfreeze_depth=1), 0)])
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
def report(record, make_images, browser) -> str:
    """The address of the study's report, with an empty console."""
    train, test = make_images(16, classes=2), make_images(8, classes=2, seed=1)
    dataset = Dataset("pets", ("cat", "dog"), train, test, 1.0)
    browser.get_log("browser")
    return write_report(record, dataset).as_uri()


def errors_of(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def column(browser, heading: str) -> list[str]:
    """The cells under a heading of the last table, which holds every trial."""
    table = browser.find_elements("css selector", "table.sortable")[-1]
    headings = [cell.text.strip(" ↑↓") for cell in table.find_elements("css selector", "th")]
    place = headings.index(heading) + 1
    return [cell.text for cell in table.find_elements("css selector", f"tbody td:nth-child({place})")]


def press(browser, heading: str) -> None:
    (button,) = (
        button
        for button in browser.find_elements("css selector", "table.sortable th button")
        if button.text.strip(" ↑↓") == heading
    )
    browser.execute_script("arguments[0].scrollIntoView()", button)
    button.click()


def test_the_report_opens_from_disk_without_an_error_and_shows_all_its_pictures(browser, report):
    browser.get(report)
    pictures = browser.find_elements("css selector", "img")
    assert pictures
    browser.execute_script("for (const image of document.images) image.loading = 'eager'")
    for picture in pictures:
        browser.execute_async_script("arguments[0].decode().then(() => arguments[1](true))", picture)
        assert int(picture.get_property("naturalWidth")) > 0
        assert picture.get_attribute("alt")
    assert errors_of(browser) == []


def test_the_report_sorts_every_trial_by_any_column(browser, report):
    browser.get(report)
    assert column(browser, "trial") == [f"#{number}" for number in range(10)]
    press(browser, "validation %")
    found = [float(cell) for cell in column(browser, "validation %")]
    assert found == sorted(found, reverse=True)
    assert column(browser, "trial")[0] == "#6"
    press(browser, "validation %")
    assert [float(cell) for cell in column(browser, "validation %")] == sorted(found)
    press(browser, "state")
    assert column(browser, "state")[0] != column(browser, "state")[-1]
    assert errors_of(browser) == []


def luminance(colour: str) -> float:
    numbers = [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]
    return float(np.dot(numbers, (0.2126, 0.7152, 0.0722)) / 255)


@pytest.mark.parametrize(("scheme", "is_dark"), [("light", False), ("dark", True)])
def test_the_report_is_light_or_dark_as_the_reader_likes_it(browser, report, scheme, is_dark):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(report)
    style = "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    page, ink = map(luminance, browser.execute_script(style))
    assert (page < ink) == is_dark
    assert abs(page - ink) > 0.7


def test_the_report_fits_a_phone(browser, report):
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        browser.get(report)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture
def ui(record, tmp_path, make_recipe) -> Iterator[tuple[str, str, dict[str, str]]]:
    """MLflow's UI on the ten trials: its address, the experiment, and the runs by trial."""
    client = connect(local_uri(tmp_path / "mlruns"), verbose=False)
    tracker = Tracker(client, record, artifacts=tmp_path / "mlruns" / "artifacts", samples=lambda plan: b"")
    for trial in record.trials():
        tracker.on_change(trial.plan)
    assert tracker.finish("FINISHED", {}, {}, "Found.") == 0
    experiment = client.get_experiment_by_name("pets").experiment_id
    runs = {run.data.tags.get("study.trial", "parent"): run.info.run_id for run in client.search_runs([experiment])}
    command = [sys.executable, "-m", "study.ui", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        address = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
        yield address, experiment, runs
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


def test_mlflows_ui_leads_from_the_study_to_ten_trials_side_by_side_and_to_a_confusion_matrix(browser, ui):
    address, experiment, runs = ui
    browser.get(f"{address}/#/experiments/{experiment}/runs")
    wait_for(browser, shows("one"))
    trials = json.dumps([runs[str(number)] for number in range(10)])
    browser.get(f"{address}/#/compare-runs?runs={trials}&experiments={json.dumps([experiment])}")
    wait_for(browser, shows("Comparing 10 Runs", "Parallel Coordinates Plot", "unfreeze_depth", "val_accuracy"))
    wait_for(browser, lambda driver: driver.find_elements("css selector", ".js-plotly-plot"))
    browser.get(f"{address}/#/experiments/{experiment}/runs/{runs['6']}/artifacts/confusion_matrix.png")
    wait_for(
        browser,
        lambda driver: any(
            int(image.get_property("naturalWidth")) > 300 for image in driver.find_elements("css selector", "img")
        ),
    )
