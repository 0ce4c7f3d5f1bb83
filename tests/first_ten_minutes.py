"""From a fresh clone to the first ✓ as a learner comes there, by what the screen shows: `make ten-minutes`.

Clones the repository into an empty folder, calls `make lab` there with this Python in place of a set-up, opens the URL
that the terminal shows last, and in Chromium clicks and types only where something is seen. Prints each step with its
seconds, and clicks and keys in all. What a learner would think of meanwhile is the solution's text.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright
from servers import PATIENCE
from test_browser import CHROMIUM, FLAGS
from test_lab import URL, unused_port

from utils.workbook import ROOT
from utils.workbook.build import solution_code
from utils.workbook.chapters import table


class Learner:
    """What is done, with the seconds since the beginning; `page` is what is seen."""

    def __init__(self):
        self.begun = self.last = time.monotonic()
        self.clicks = self.keys = 0
        self.page = None

    def says(self, what: str) -> None:
        now = time.monotonic()
        print(f"{now - self.begun:6.1f} s  (+{now - self.last:5.1f})  {what}", flush=True)
        self.last = now

    def click(self, text: str, within: str = "body") -> None:
        seen = self.page.locator(within).get_by_text(text).locator("visible=true").first
        seen.click()
        self.clicks += 1

    def press(self, keys: str) -> None:
        self.page.keyboard.press(keys)
        self.keys += 1

    def sees(self, text: str, within: str = "body") -> None:
        self.page.locator(within).get_by_text(text).locator("visible=true").first.wait_for()


def main() -> None:
    row = table()[0]
    first = row.exercises[0]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        clone = Path(folder) / "workbook"
        learner = Learner()
        subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, clone], check=True)
        learner.says("cloned")
        # What make is given from outside stays outside; the folders are those of somebody who was never here.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("WORKBOOK_", "JUPYTER", "MAKE"))}
        own = {f"JUPYTERLAB_{name}_DIR": str(Path(folder) / name) for name in ("WORKSPACES", "SETTINGS")}
        words = ["make", "--no-print-directory", "lab", "BROWSER=no", "STAMP=", f"PY={sys.executable}"]
        with (Path(folder) / "terminal").open("w+") as terminal:
            server = subprocess.Popen(
                [*words, f"PORT={unused_port()}"],
                cwd=clone,
                env={**env, **own, "PYTHONPATH": ""},
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
            )
            try:
                url = last_line(Path(terminal.name), server)
                learner.says("make lab shows its URL")
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                learner.page = browser.new_page(viewport={"width": 1280, "height": 800})
                learner.page.set_default_timeout(PATIENCE * 1000)
                learner.page.goto(url)
                way(learner, row, first)
                browser.close()
            finally:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(PATIENCE)
    print(f"{learner.clicks} clicks, {learner.keys} keys beside the answer's text")


def last_line(terminal: Path, server: subprocess.Popen) -> str:
    """The URL in the terminal's last line, once it is there."""
    end = time.monotonic() + PATIENCE
    while not (found := URL.search((terminal.read_text().strip().splitlines() or [""])[-1])):
        if server.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"no URL in the last line of what make lab said:\n{terminal.read_text()}")
        time.sleep(0.1)
    return re.sub("localhost", "127.0.0.1", found[0])


def way(learner: Learner, row, first) -> None:
    """The clicks and keys from the start page to the first ✓ and back."""
    learner.sees("Begin here")
    learner.says("the start page is seen")
    learner.click(f"Open chapter {row.number}")
    learner.sees(f"{row.number} · {row.title}", ".jp-NotebookPanel")
    learner.says(f"chapter {row.number} is open")
    learner.click(first.title, ".workbook-exercises")
    learner.sees(f"Exercise: {first.title}", ".jp-NotebookPanel")
    learner.says("its first exercise is seen")
    learner.click("Run all above", ".Toastify")
    learner.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='busy']")
    learner.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    learner.says("what stands above it has run")
    learner.click(f"def {first.name}", ".jp-NotebookPanel")
    learner.press("Control+a")
    learner.page.keyboard.insert_text(solution_code(first.target).rstrip())
    learner.press("Shift+Enter")
    learner.press("Shift+Enter")
    learner.sees(f"✓ {first.name}: right.", ".jp-NotebookPanel")
    learner.says("the first ✓")
    learner.click("Start page", ".workbook-exercises")
    learner.sees(f"1 of {len(row.exercises)} solved", ".workbook-start")
    learner.says("the start page counts it")


if __name__ == "__main__":
    main()
