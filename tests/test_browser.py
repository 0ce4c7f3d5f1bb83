"""A learner's whole way in a real browser: run all, answer wrongly, answer rightly, reload.

Needs Debian's chromium (or Chrome); skipped with a reason where there is none. WORKBOOK_SCREENSHOTS names a folder
to keep pictures in.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError, sync_playwright
from servers import PATIENCE, wait_until_it_listens

from utils.checks import progress
from utils.workbook import ROOT, WorkbookError
from utils.workbook.build import read_notebook, solution_code

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
CHAPTER = "01_tokenization"
WRONG = '''def merge_pair(word, pair):
    """Only the first place."""
    for i in range(len(word) - 1):
        if word[i : i + 2] == pair:
            return (*word[:i], word[i] + word[i + 1], *word[i + 2 :])
    return word'''

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium or Chrome is installed (Debian: apt-get install chromium)"),
    pytest.mark.skipif(not shutil.which("make"), reason="make is not installed"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """`make lab` on an empty folder for the learner's copies: (URL with its token, folder)."""
    work = tmp_path_factory.mktemp("work")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A workspace of its own: JupyterLab would reopen what was last open on this machine.
    workspaces = str(tmp_path_factory.mktemp("workspaces"))
    env = {**os.environ, "WORKBOOK_WORK": str(work), "JUPYTERLAB_WORKSPACES_DIR": workspaces}
    log = (work / "lab.log").open("w+")
    command = ["make", "lab", f"PORT={port}", "BROWSER=no"]
    server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(2 * PATIENCE):
            found = re.search(rf"http://\S*:{port}/lab\?token=\w+", (work / "lab.log").read_text())
            if found or server.poll() is not None:
                break
            time.sleep(0.5)
        assert found, (work / "lab.log").read_text()
        wait_until_it_listens(port, server)
        yield re.sub(r"//[^:/]*:", "//127.0.0.1:", found[0]), work
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)
        log.close()


@pytest.fixture(scope="module")
def page(lab):
    url, _ = lab
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(url.replace("/lab?", f"/lab/tree/{CHAPTER}.ipynb?"))
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        yield page
        browser.close()


def picture(page, name):
    if folder := os.environ.get("WORKBOOK_SCREENSHOTS"):
        page.locator(".jp-NotebookPanel").screenshot(path=Path(folder) / f"{name}.png")


def kernel_is_idle(page):
    """A notebook just opened starts its kernel; before, a menu's entry does nothing."""
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")


def menu(page, *labels):
    """Choose an entry of the menu bar."""
    page.locator(".lm-MenuBar-item", has_text=labels[0]).first.click()
    page.locator(".lm-Menu-item", has_text=labels[1]).first.click()


def run_all(page):
    """Until a cell has run or waits for its turn: a click may come before the notebook takes commands."""
    begun = "[...document.querySelectorAll('.jp-InputPrompt')].some(p => /\\[[*0-9]+\\]/.test(p.textContent))"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        menu(page, "Run", "Run All Cells")
        try:
            return page.wait_for_function(begun, timeout=20_000)
        except TimeoutError:
            page.keyboard.press("Escape")
    raise AssertionError("Run All Cells runs nothing")


def on_disk(work):
    """The notebook as it was saved; JupyterLab writes in place, so that a look may meet half of it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return read_notebook(work / f"{CHAPTER}.ipynb")
        except WorkbookError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def saved_when(condition, page, work):
    """Save until the notebook on disk meets the condition or holds an error; returns the notebook."""
    end = time.monotonic() + PATIENCE
    while True:
        page.keyboard.press("Escape")
        page.keyboard.press("Control+s")
        time.sleep(1)
        notebook = on_disk(work)
        if condition(notebook) or errors(notebook) or time.monotonic() > end:
            return notebook


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def errors(notebook):
    return [c.id for c in code_cells(notebook) for o in c.outputs if o.output_type == "error"]


def printed(notebook, cell_id):
    cell = next(c for c in notebook.cells if c.id == cell_id)
    text = "".join(o.get("text", "") for o in cell.outputs)
    return re.sub(r"\x1b\[\d+m", "", text)


def write_and_run(page, name, code):
    """Replace an exercise cell's code, run it and the check cell below it."""
    editor = page.locator(".jp-CodeCell .cm-content", has_text=f"def {name}(").first
    editor.scroll_into_view_if_needed()
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")


def test_a_learners_way(lab, page):
    _, work = lab

    # Run all on the untouched chapter: no error stops it, every check says kindly that nothing is written yet.
    kernel_is_idle(page)
    run_all(page)
    notebook = saved_when(lambda nb: all(c.execution_count for c in code_cells(nb)), page, work)
    code = code_cells(notebook)
    assert not errors(notebook)
    assert all(c.execution_count for c in code), [c.id for c in code if not c.execution_count]
    exercises = [c.id for c in code if "exercise" in c.metadata]
    for name in exercises:
        assert f"○ {name}: not written yet" in printed(notebook, f"check-{name}")
    picture(page, "1-run-all")

    # A typical mistake is named.
    write_and_run(page, "merge_pair", WRONG)
    said = "you merged only the first place"
    notebook = saved_when(lambda nb: said in printed(nb, "check-merge_pair"), page, work)
    picture(page, "2-wrong")
    assert said in printed(notebook, "check-merge_pair")
    assert progress.load(work)["tokenization"] == {"merge_pair": "tried"}

    # The right answer passes, and the progress moves.
    write_and_run(page, "merge_pair", solution_code("utils.tokenization.merge_pair").rstrip())
    said = f"1 of {len(exercises)} in this chapter"
    notebook = saved_when(lambda nb: said in printed(nb, "check-merge_pair"), page, work)
    picture(page, "3-right")
    assert said in printed(notebook, "check-merge_pair")
    assert progress.load(work)["tokenization"] == {"merge_pair": "solved"}
    env = {**os.environ, "WORKBOOK_WORK": str(work)}
    table = subprocess.run(["make", "progress"], cwd=ROOT, env=env, capture_output=True, text=True).stdout
    assert re.search(rf"{CHAPTER}\s+1 of {len(exercises)}", table), table

    # Kept after a reload.
    page.reload()
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    answer = page.locator(".jp-CodeCell .cm-content", has_text="def merge_pair(")
    answer.first.wait_for()
    assert answer.count() == 1
    assert "right." in printed(on_disk(work), "check-merge_pair")
    picture(page, "4-reloaded")
