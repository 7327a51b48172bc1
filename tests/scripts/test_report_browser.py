"""The report in a real browser, opened from disk: Caltech101, the demo, several runs, a thousand classes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from report_runs import page_data, write_run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow  # training runs, a browser

LEFT_OUT = ("OPTS", "EPOCHS", "BASE", "VARIANT", "CFG", "SHOTS", "LOADEP", "DRY_RUN")


def start(command, **env):
    """Run from the repository's root, free of what the caller's shell sets."""
    kept = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    env = {**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **{k: str(v) for k, v in env.items()}}
    result = subprocess.run(list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result


def write_report(output, *runs, more=()):
    start([sys.executable, "scripts/confusion_report.py", *runs, "--output", output, *more])
    return output / "report.html"


class Page:
    """A page in the browser, and what its user does with it."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path
        self.data = page_data(path.read_text(encoding="utf-8"))
        for log in ("browser", "performance"):
            driver.get_log(log)  # what earlier pages left
        driver.get(path.as_uri())

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def click(self, selector):
        element = self.all(selector)[0]
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def rows(self, table):
        script = "return [...document.querySelectorAll(arguments[0])].map(r => [...r.cells].map(c => c.textContent))"
        return self.driver.execute_script(script, f"#{table} tbody tr")

    def sort(self, table, title):
        """Click a column's head; returns its cells and the direction that the head tells."""
        heads = self.all(f"#{table} th")
        place = [head.text.rstrip(" ▲▼") for head in heads].index(title)
        heads[place].find_element("tag name", "button").click()
        told = self.all(f"#{table} th")[place].get_attribute("aria-sort")
        return [row[place] for row in self.rows(table)], told

    def search(self, table, words):
        field = self.all(f"#search-{table}")[0]
        field.clear()
        field.send_keys(words + " ")  # clear alone tells the page nothing
        return self.rows(table), self.all(f"#found-{table}")[0].text

    def dialog(self):
        """Title, text and decoded pictures of the open dialog."""
        self.wait("return document.querySelector('#detail').open")
        self.wait("return [...document.querySelectorAll('#detail img')].every(i => i.complete)")
        widths = self.driver.execute_script(
            "return [...document.querySelectorAll('#detail figure > img')].map(i => i.naturalWidth)"
        )
        assert all(width > 0 for width in widths)
        return self.all("#detail-title")[0].text, self.all("#detail-body")[0].text, len(widths)

    def close(self):
        self.click("#close")
        assert not self.driver.execute_script("return document.querySelector('#detail').open")

    def wait(self, script, seconds=10):
        end = time.monotonic() + seconds
        while not self.driver.execute_script(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def assert_quiet(self):
        """Nothing on the console, and nothing was asked for but what the file holds."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert self.path.as_uri() in urls  # the log does tell of requests
        assert {urlsplit(url).scheme for url in urls} <= {"file", "data", "blob"}
        assert {url for url in urls if url.startswith("file:")} == {self.path.as_uri()}
        assert self.driver.get_log("browser") == []

    def assert_nothing_sticks_out(self):
        """No sideways scrolling: not of the page, not of the table of runs, not of an open dialog."""
        script = """return ['html', '#detail', ...document.querySelectorAll('.scroll')]
            .map(x => typeof x === 'string' ? document.querySelector(x) : x)
            .filter(x => x.scrollWidth > x.clientWidth + 1).map(x => x.id || x.innerHTML.slice(0, 80))"""
        assert self.driver.execute_script(script) == []


@pytest.fixture(scope="module")
def driver():
    pytest.importorskip("jinja2", reason="jinja2 is missing; pip install '.[report,test]'")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing; pip install '.[test]'")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        pytest.skip(f"no {missing} on the PATH; Debian has it in the package chromium{'-driver' * bool(chromium)}")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1320,1400"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def caltech(tmp_path_factory, shared_data):
    """The report of a short CAPT run on all of Caltech101: 100 classes, 4 shots, one epoch."""
    folder = tmp_path_factory.mktemp("caltech")
    environment = {
        **{"DATA": shared_data, "BACKBONE": shared_data / "clip/small_vit48.pt", "SIZE": "(48, 48)"},
        **{"OUTPUT": folder / "output", "SEEDS": 1, "EPOCHS": 1},
    }
    start(["bash", "scripts/capt/few_shot.sh", "caltech101", "4"], **environment)
    run = folder / "output/caltech101/CAPT/vit_b16_ep20_on_ZeroshotCLIP_4shots/seed1"
    return write_report(folder / "report", run)


@pytest.fixture(scope="module")
def demo_runs(tmp_path_factory):
    """Run folders of the demo's CAPT: the base classes that it was trained on, and its test on the new ones."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {
        **{"DATA": folder / "data", "BACKBONE": "assets/glyphs_clip.pt", "SIZE": "(48, 48)"},
        **{"OUTPUT": folder / "output", "CFG": "demo"},
    }
    for kind in ("train", "test"):
        start(["bash", f"scripts/capt/base2new_{kind}.sh", "glyphs", "1"], **environment)
    tail = "glyphs/shots_16/CAPT/demo_on_ZeroshotCLIP/seed1"
    return [folder / "output/base2new" / kind / tail for kind in ("train_base", "test_new")]


def explore(page):
    """Sort, search, click a cell, a pair and a class; every click must show what the data say."""
    run = page.data["runs"][0]
    names, pairs = run["classes"], run["pairs"]

    cells, told = page.sort("pairs", "errors after")
    numbers = [int(cell) for cell in cells]
    assert told == "descending"
    assert numbers == sorted((pair[3] for pair in pairs), reverse=True)[:300]
    cells, told = page.sort("pairs", "errors after")
    assert told == "ascending"
    assert [int(cell) for cell in cells] == sorted(pair[3] for pair in pairs)[:300]
    cells, _ = page.sort("pairs", "class")
    assert [cell.lower() for cell in cells] == sorted(cell.lower() for cell in cells)

    a, b = max(pairs, key=lambda pair: pair[3])[:2]
    mine = [{names[pair[0]], names[pair[1]]} for pair in pairs if a in pair[:2]]
    rows, note = page.search("pairs", names[a])
    assert all(pair in [set(row[:2]) for row in rows] for pair in mine)
    rows, _ = page.search("pairs", f"{names[b]} {names[a]}".replace("_", " "))
    assert {names[a], names[b]} in [set(row[:2]) for row in rows]
    assert page.search("pairs", "no such class") == ([], "0 pairs")
    rows, note = page.search("classes", names[a].replace("_", " "))
    assert names[a] in [row[0] for row in rows]
    page.click("#classes tbody tr")
    title, text, _ = page.dialog()
    assert title in names
    page.close()

    after = {(y, p): n for y, p, n in run["after"]}
    y, p = max((a, b), (b, a), key=lambda cell: after.get(cell, 0))
    for view in ("before", "change", "after"):
        page.click(f"#views [data-view={view}]")
        assert page.all(f"#views [data-view={view}]")[0].get_attribute("aria-pressed") == "true"
    page.click(f'#matrix rect.cell[data-row="{y}"][data-column="{p}"]')
    title, text, pictures = page.dialog()
    assert title == f"{names[y]}, taken for {names[p]}"
    assert f"{after[y, p]} image" in text
    assert pictures >= after[y, p]
    page.assert_nothing_sticks_out()
    page.close()

    page.search("pairs", f"{names[a]} {names[b]}")
    page.click("#pairs tbody tr")
    title, text, pictures = page.dialog()
    assert title == " and ".join(page.rows("pairs")[0][:2])
    assert "resolved" in text
    assert "What tells" in text  # the sentences
    assert pictures > 0
    assert page.all("#detail .mini img")  # the training images that spoke
    page.assert_nothing_sticks_out()
    page.close()
    page.assert_nothing_sticks_out()
    page.assert_quiet()


def test_caltech101(driver, caltech):
    page = Page(driver, caltech)
    assert len(page.data["runs"][0]["classes"]) == 100
    assert all(image[-1] >= 0 for image in page.data["runs"][0]["images"])
    assert caltech.stat().st_size < 15e6
    explore(page)


def test_demo(driver, demo_runs, tmp_path):
    page = Page(driver, write_report(tmp_path / "report", demo_runs[0]))
    record = json.loads((demo_runs[0] / "results.json").read_text())
    table = page.all("#runs")[0].text
    for told in (record["commit"] or "unknown commit", record["protocol"], "seed 1", "accuracy %", "384 images"):
        assert told in table
    assert f"{record['accuracy']:.2f}" in table
    explore(page)


def test_base_and_new_classes_of_the_demo_in_one_report(driver, demo_runs, tmp_path):
    page = Page(driver, write_report(tmp_path / "report", *demo_runs))
    base, new = page.data["runs"]
    assert base["note"] == new["note"] == ""  # the folder of the test finds the model of the training
    assert new["texts"]
    page.click("#run option:nth-child(2)")
    assert "new classes" in page.all("#lead")[0].text
    assert {row[0] for row in page.rows("classes")} == set(new["classes"])
    assert not set(new["classes"]) & set(base["classes"])
    page.click("#pairs tbody tr")
    assert page.dialog()[2] > 0
    page.close()
    page.assert_nothing_sticks_out()
    page.assert_quiet()


def test_a_thousand_classes(driver, tmp_path):
    source = np.random.RandomState(0)
    labels = np.arange(5000) % 1000
    predictions = np.where(source.rand(5000) < 0.4, labels ^ 1, labels)
    predictions = np.where(source.rand(5000) < 0.1, source.randint(0, 1000, 5000), predictions)
    base = np.where(source.rand(5000) < 0.5, labels ^ 1, labels)
    run = write_run(tmp_path / "run", labels, predictions, base, root=tmp_path / "images")
    path = write_report(tmp_path / "report", run)
    assert path.stat().st_size < 15e6
    page = Page(driver, path)
    assert "1,000 classes stand in 32 blocks" in page.all("#blocks-note")[0].text
    assert len(page.rows("pairs")) == 300
    first = page.data["runs"][0]["blocks"][0]
    page.click(f'#matrix rect.cell[data-row="{first[0]}"][data-column="{first[0]}"]')
    assert len(page.all("#back")) == 1
    shown = {int(cell.get_attribute("data-row")) for cell in page.all("#matrix rect.cell")}
    assert shown == set(first)
    after = {(y, p) for y, p, _ in page.data["runs"][0]["after"]}
    y, p = next((c, c ^ 1) for c in first if (c, c ^ 1) in after and c ^ 1 in first)
    page.click(f'#matrix rect.cell[data-row="{y}"][data-column="{p}"]')
    title, _, pictures = page.dialog()
    assert title == f"class {y}, taken for class {p}"
    assert pictures > 0
    page.close()
    page.click("#back")
    assert not page.all("#back")
    page.click("#pairs tbody tr")
    assert page.dialog()[2] > 0
    page.close()
    page.assert_quiet()


def test_a_run_without_errors(driver, tmp_path):
    labels = np.arange(12) % 4
    page = Page(driver, write_report(tmp_path / "report", write_run(tmp_path / "run", labels, labels, labels)))
    assert page.all("#found-pairs")[0].text == "No errors at all."
    page.click("#matrix rect.cell")
    title, text, _ = page.dialog()
    assert title.endswith(": right")
    assert "3 images after, 3 before." in text
    assert "no picture" in text  # the data root of this run has gone
    page.close()
    page.assert_quiet()
