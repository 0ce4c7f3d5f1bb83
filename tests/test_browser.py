"""A learner's whole way in a real browser: arrive, guess, run all, answer wrongly, rightly, go on, the next chapter.

Needs Debian's chromium (or Chrome); skipped with a reason where there is none. WORKBOOK_SCREENSHOTS names a folder
to keep pictures in, light and dark: `WORKBOOK_SCREENSHOTS=docs` makes those of the README.
"""

import dis
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import CodeType

import nbformat
import pytest
from playwright.sync_api import sync_playwright
from servers import PATIENCE, wait_until_it_listens

from utils.checks import progress
from utils.workbook import ROOT, SOLUTIONS, WorkbookError
from utils.workbook.build import read_notebook, solution_code
from utils.workbook.chapters import table
from utils.workbook.learner import progress_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
CHAPTER, NEXT = table()[1:3]
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
    # A workspace and settings of its own: JupyterLab would reopen what was last open on this machine.
    own = {f"JUPYTERLAB_{name}_DIR": str(tmp_path_factory.mktemp(name.lower())) for name in ("WORKSPACES", "SETTINGS")}
    env = {**os.environ, "WORKBOOK_WORK": str(work), **own}
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
def arrived(lab):
    url, _ = lab
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(url)
        page.wait_for_selector("#wb-go")
        yield page
        browser.close()


@pytest.fixture
def page(arrived):
    """The page that all tests share, as wide as the first of them finds it whatever one before did."""
    arrived.set_viewport_size({"width": 1280, "height": 800})
    return arrived


def pictures(page, name):
    """In light and dark, `name-light.png` and `name-dark.png`, of what is seen."""
    if folder := os.environ.get("WORKBOOK_SCREENSHOTS"):
        for theme in ("dark", "light"):
            wear(page, theme)
            page.screenshot(path=Path(folder) / f"{name}-{theme}.png")


def wear(page, theme):
    """Change JupyterLab's theme by its menu, and wait until it is on."""
    page.locator(".lm-MenuBar-item", has_text="Settings").first.click()
    page.locator(".lm-Menu-item", has_text="Theme").first.click()
    page.locator(".lm-Menu-item", has_text=f"JupyterLab {theme.title()}").first.click()
    is_light = "true" if theme == "light" else "false"
    page.wait_for_selector(f"body[data-jp-theme-light='{is_light}']", state="attached")
    page.wait_for_selector("#jupyterlab-splash", state="detached")


def menu(page, *labels):
    """Choose an entry of the menu bar."""
    page.locator(".lm-MenuBar-item", has_text=labels[0]).first.click()
    page.locator(".lm-Menu-item", has_text=labels[1]).first.click()


def on_disk(work):
    """The notebook as it was saved; JupyterLab writes in place, so that a look may meet half of it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return read_notebook(work / CHAPTER.file)
        except WorkbookError:
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def saved_when(condition, page, work, patience=PATIENCE):
    """Save until the notebook on disk meets the condition or holds an error; returns the notebook."""
    end = time.monotonic() + patience
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
    write_and_run_next(page, page.locator(".jp-CodeCell .cm-content", has_text=f"def {name}(").first, code)


def write_and_run_next(page, editor, code):
    """Replace a cell's code, run it and the cell below it."""
    editor.scroll_into_view_if_needed()
    editor.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")


# Every text's colour over the background that it stands on, as WCAG 2 computes the contrast: the texts below 4.5.
FAINT = """root => {
  const parse = text => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
  const ground = node => {
    if (!node) return [255, 255, 255];
    const colour = parse(getComputedStyle(node).backgroundColor);
    return (colour[3] ?? 1) === 1 ? colour : over(colour, ground(node.parentElement));
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(x => x / 255).map(x => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), faint = [];
  let texts = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.getClientRects().length || node.closest("style")) continue;
    texts++;
    const below = ground(node), shown = [over(parse(getComputedStyle(node).color), below), below].map(light);
    const contrast = (Math.max(...shown) + 0.05) / (Math.min(...shown) + 0.05);
    if (contrast < 4.5) faint.push(`${contrast.toFixed(2)} ${text}`);
  }
  return texts > 10 ? faint : ["no text"];
}"""
# Texts that are wider or higher than what holds them.
CLIPPED = """root => [...root.querySelectorAll("*")].filter(n => n.clientWidth && !n.closest("svg") &&
  (n.scrollWidth > n.clientWidth + 1 || n.scrollHeight > n.clientHeight + 1)).map(n => n.textContent.trim())"""


def test_arrival(lab, page):
    start, panel = page.locator(".workbook-start"), page.locator(".workbook-exercises")

    # It is what is seen first, with the panel at its left; neither Launcher nor file browser.
    assert "Begin here" in start.inner_text() and panel.is_visible()
    assert not page.locator(".jp-Launcher").count() and not page.locator(".jp-FileBrowser").is_visible()
    pictures(page, "start")

    # Nothing is faint, nothing clipped: in both themes, in a wide and a narrow window.
    for theme, width in (("dark", 900), ("light", 1280)):
        wear(page, theme)
        page.set_viewport_size({"width": width, "height": 800})
        for part in (start, panel):
            assert part.evaluate(FAINT) == [], theme
        assert page.locator(".wb").evaluate(CLIPPED) == [], width

    # By keyboard every link is reached in its order, and is seen to be.
    links = start.locator("a").evaluate_all("links => links.map(link => link.id || link.textContent)")
    start.locator("a").first.focus()
    reached = []
    for _ in links:
        seen = page.evaluate(
            "[document.activeElement.id || document.activeElement.textContent, "
            "getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(seen[0])
        page.keyboard.press("Tab")
        assert seen[1] == "solid" or len(reached) == 1, f"the focus on {seen[0]} is not seen"
    assert reached == links

    # A reload finds it again, and no Launcher in its place.
    page.reload()
    page.wait_for_selector("#wb-go")
    assert not page.locator(".jp-Launcher").count()


def test_a_learners_way(lab, page):
    _, work = lab

    # One click, or Enter, opens a chapter.
    page.locator(f"#wb-{CHAPTER.number}").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")

    # Run all on the untouched chapter: no error stops it, every check says kindly that nothing is written yet.
    menu(page, "Run", "Run All Cells")
    notebook = saved_when(lambda nb: all(c.execution_count for c in code_cells(nb)), page, work)
    code = code_cells(notebook)
    assert not errors(notebook)
    assert all(c.execution_count for c in code), [c.id for c in code if not c.execution_count]
    exercises = [c.id for c in code if "exercise" in c.metadata]
    for name in exercises:
        assert f"○ {name}: not written yet" in printed(notebook, f"check-{name}")
    last = next(c for c in notebook.cells if c.id == "check-all").outputs[-1].data["text/markdown"]
    assert [f"(#cell-id={name})" in last for name in exercises] == [True] * len(exercises)

    # A guess stays in the notebook, and stands beside what is measured.
    asks = page.locator(".jp-CodeCell .cm-content", has_text="as many bytes as characters").first
    write_and_run_next(
        page,
        asks,
        'expect("bytes of cat, naïve, 日本, 🍌", [3, 6, 6, 4])\nexpect("as many bytes as characters", "my guess")',
    )
    graded = next(c.id for c in code if 'grade("as many bytes as characters"' in c.source)
    notebook = saved_when(lambda nb: "your guess: my guess" in printed(nb, graded), page, work)
    assert "your guess: my guess" in printed(notebook, graded)

    # What is open stands below, and leads to the exercise.
    page.click("#wb-section-learned")
    page.click(".jp-OutputArea a[href='#cell-id=merge_pair']")
    page.wait_for_function(AT_THE_TOP, arg="Exercise: merge a pair")

    # A typical mistake is named.
    write_and_run(page, "merge_pair", WRONG)
    said = "you merged only the first place"
    notebook = saved_when(lambda nb: said in printed(nb, "check-merge_pair"), page, work)
    page.click("#wb-exercise-merge_pair")
    pictures(page, "mistake")
    assert said in printed(notebook, "check-merge_pair")
    assert progress.load(work)["tokenization"] == {"merge_pair": "tried"}

    # The right answer passes, and the progress moves.
    write_and_run(page, "merge_pair", solution_code("utils.tokenization.merge_pair").rstrip())
    said = f"1 of {len(exercises)} in this chapter"
    notebook = saved_when(lambda nb: said in printed(nb, "check-merge_pair"), page, work)
    assert said in printed(notebook, "check-merge_pair")
    assert progress.load(work)["tokenization"] == {"merge_pair": "solved"}
    said_by_make = progress_table(work=work)
    assert re.search(rf"{CHAPTER.name}\s+1 of {len(exercises)}", said_by_make), said_by_make

    # The start page knows it, and goes on to the next exercise in one click, at its heading.
    page.locator(".jp-NotebookPanel a[title='The start page']").first.evaluate("link => link.click()")
    following = exercises[exercises.index("merge_pair") + 1]
    page.wait_for_selector(f"#wb-go[data-at='{following}']")
    assert f"1 of {len(exercises)} solved" in page.locator(f"#wb-{CHAPTER.number}").inner_text()
    page.click("#wb-go")
    page.wait_for_function(AT_THE_TOP, arg=f"Exercise: {CHAPTER.exercises[exercises.index(following)].title}")

    # It follows what is recorded from elsewhere, and so does the panel, without a reload.
    progress.record("tokenization", following, "solved", work)
    page.wait_for_selector(f".workbook-exercises li:has(#wb-exercise-{following}) [aria-label='solved']")

    # Kept after a reload, which stays where it was.
    saved_when(lambda nb: said in printed(nb, "check-merge_pair"), page, work)
    page.reload()
    page.wait_for_selector(".workbook-exercises li:has(#wb-exercise-merge_pair) [aria-label='solved']")
    assert not page.locator("#wb-go").is_visible()
    page.click("#wb-exercise-merge_pair")
    answer = page.locator(".jp-CodeCell .cm-content", has_text="def merge_pair(")
    answer.first.wait_for()
    assert answer.count() == 1
    assert "right." in printed(on_disk(work), "check-merge_pair")

    # From the chapter's end to the next chapter.
    page.click("#wb-section-learned")
    page.locator(".jp-NotebookPanel a", has_text=f"{NEXT.number} · {NEXT.title} →").locator("visible=true").last.click()
    page.wait_for_selector(f".workbook-exercises h2:has-text('{NEXT.number} · {NEXT.title}')")


# The active cell is the one with this heading, and the notebook begins with it.
AT_THE_TOP = """title => {
  const active = document.querySelector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-mod-active");
  const [cell, box] = [active, active?.closest(".jp-WindowedPanel-outer")].map(node => node?.getBoundingClientRect());
  return cell?.height && active.textContent.includes(title) && Math.abs(cell.top - box.top) < 40;
}"""


def test_a_jump_into_a_long_chapter_lands_and_stays(lab, page):
    url, _ = lab
    longest = max(table(), key=lambda row: row.path.stat().st_size)
    last = longest.exercises[-1]
    page.goto(f"{url}&reset")
    page.locator("#wb-go").evaluate(
        "(link, to) => Object.assign(link.dataset, to)", {"open": longest.file, "at": last.name}
    )
    page.click("#wb-go")
    page.wait_for_function(AT_THE_TOP, arg=f"Exercise: {last.title}")
    # The cells above it are put on the page meanwhile.
    attached = page.locator(".jp-Notebook-cell").count()
    page.wait_for_function(
        "before => document.querySelectorAll('.jp-Notebook-cell').length > before + 50", arg=attached
    )
    page.wait_for_timeout(500)
    assert page.evaluate(AT_THE_TOP, f"Exercise: {last.title}")


# What asks for the running sessions, and then for a new one, waits: JupyterLab has no kernel yet when all is to run.
SLOWLY = """milliseconds => {
  const ask = (window.ask ??= window.fetch);
  window.fetch = async (request, ...rest) => {
    if (/api\\/sessions/.test(request.url ?? request)) await new Promise(done => setTimeout(done, milliseconds));
    return ask(request, ...rest);
  };
}"""
KERNELS = "fetch('/api/kernels').then(answer => answer.json()).then(kernels => kernels.length)"


@pytest.mark.parametrize("seconds", [0, 2])
def test_run_all_chosen_at_once_runs_every_cell_in_one_kernel(lab, page, seconds):
    url, work = lab
    file = f"at-once-{seconds}.ipynb"
    cells = [nbformat.v4.new_code_cell(f"print({i})") for i in range(6)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=on_disk(work).metadata), work / file)
    page.goto(f"{url}&reset")
    page.wait_for_selector("#wb-go")
    before = page.evaluate(KERNELS)
    page.evaluate(SLOWLY, 1000 * seconds)
    page.locator("#wb-01").evaluate("(link, file) => (link.dataset.open = file)", file)
    page.dblclick("#wb-01")
    # At first one empty cell stands for what is being read.
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", state="attached")
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(PROMPTS, arg=[f"[{n}]:" for n in range(1, 7)])
    assert page.evaluate(KERNELS) == before + 1

    # And again where the kernel was shut down.
    menu(page, "Kernel", "Shut Down Kernel")
    page.wait_for_function(f"{KERNELS}.then(kernels => kernels === {before})")
    menu(page, "Edit", "Clear Outputs of All Cells")
    page.wait_for_function(PROMPTS, arg=["[ ]:"] * 6)
    menu(page, "Run", "Run All Cells")
    page.wait_for_function(PROMPTS, arg=[f"[{n}]:" for n in range(1, 7)])
    assert page.evaluate(KERNELS) == before + 1


# What five tabs ask the server for when they open one notebook at the same moment: how many kernels they are given.
FIVE_TABS = """async ([path, token]) => {
  const headers = { Authorization: `token ${token}` };
  const body = JSON.stringify({ path, name: path, type: "notebook", kernel: { name: "python3" } });
  const ask = () => fetch("/api/sessions", { method: "POST", headers, body }).then(answer => answer.json());
  return new Set((await Promise.all([1, 2, 3, 4, 5].map(ask))).map(session => session.kernel.id)).size;
}"""


def test_tabs_that_open_a_notebook_at_the_same_moment_share_its_kernel(lab, page):
    url, _ = lab
    assert page.evaluate(FIVE_TABS, ["five-tabs.ipynb", url.partition("token=")[2]]) == 1


PROMPTS = """wanted => {
  const shown = [...document.querySelectorAll(".jp-Notebook .jp-InputPrompt")].map(prompt => prompt.textContent);
  return JSON.stringify(shown) === JSON.stringify(wanted);
}"""


# Of the chapters with sliders the first runs in `make test`, all in `make test-full`.
FULL = pytest.mark.skipif(not os.environ.get("WORKBOOK_FULL"), reason="in make test-full (WORKBOOK_FULL=1)")


@pytest.mark.parametrize("number", ["03", pytest.param("06", marks=FULL), pytest.param("08", marks=FULL)])
def test_a_slider_moved_by_hand_draws_its_figure_anew(lab, page, number):
    url, work = lab
    notebook = read_notebook(next(SOLUTIONS.glob(f"{number}_*.ipynb")))
    notebook.cells = [nbformat.v4.new_code_cell(code) for code in what_the_sliders_need(code_cells(notebook))]
    file = f"sliders-{number}.ipynb"
    nbformat.write(notebook, work / file)
    page.goto(url.replace("/lab?", f"/lab/tree/{file}?reset&"))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    menu(page, "Run", "Run All Cells")
    handles = page.locator(".widget-slider .noUi-handle")
    handles.first.wait_for()
    # The figures above are not looked at; the one with the sliders is the last cell's.
    plot = page.locator(".jp-CodeCell").last.locator(".js-plotly-plot")
    handles.first.scroll_into_view_if_needed()
    plot.wait_for()
    for i in range(handles.count()):
        for theme, keys in (("dark", "ArrowLeft"), ("light", "ArrowRight")) if i == 0 else ((None, "ArrowLeft"),):
            title, before = said(plot, ".gtitle"), said(plot, ".cartesianlayer")
            handles.nth(i).focus()
            for _ in range(4):
                page.keyboard.press(keys)
            page.wait_for_function(CHANGED, arg=[".gtitle", title])
            assert said(plot, ".cartesianlayer") != before, (number, i)
            if theme and (folder := os.environ.get("WORKBOOK_SCREENSHOTS")):
                wear(page, theme)
                page.screenshot(path=Path(folder) / f"slider-{number}-{theme}.png")
    assert handles.count() > 0


def what_the_sliders_need(cells):
    """The code of the last cell with sliders, and of those above it that it builds on."""
    codes = [c.source for c in cells if not c.id.startswith("check-")]
    last = max(i for i, code in enumerate(codes) if "show.sliders(" in code)
    needed, kept = uses(codes[last])[0], [codes[last]]
    for code in codes[last - 1 :: -1]:
        taken, made = uses(code)
        if made & needed or "import *" in code:
            kept.insert(0, code)
            needed = (needed - made) | taken
    return kept


def uses(source):
    """The names that a cell takes from cells above it, and those that it makes."""
    taken, made, todo = set(), set(), [compile(source, "", "exec")]
    for code in todo:  # the cell, then the functions in it
        for step in dis.get_instructions(code):
            if step.opname == "STORE_NAME" and code is todo[0]:
                made.add(step.argval)
            elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL", "DELETE_NAME") and step.argval not in made:
                taken.add(step.argval)
        todo += [x for x in code.co_consts if isinstance(x, CodeType)]
    return taken, made


CHANGED = """([part, before]) => {
  const cell = [...document.querySelectorAll(".jp-CodeCell")].at(-1);
  const node = cell.querySelector(`.js-plotly-plot ${part}`);
  return node && node.textContent !== before;
}"""


def said(plot, part):
    """What a part of a plot shows: a text, or all marks with their places and colours."""
    node = plot.locator(part).first
    return node.text_content() if part == ".gtitle" else node.inner_html()
