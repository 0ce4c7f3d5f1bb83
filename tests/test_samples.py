"""`make test`'s samples of what `make test-full` runs in full."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from utils.workbook import ROOT, SOLUTIONS, full
from utils.workbook.build import read_notebook
from utils.workbook.mistakes import LIST

# In a process that starts anew, so that a connection shows which importing or loading would open.
WITHOUT_SOCKETS = """
import socket
def refuse(*a, **k): raise SystemExit('a socket was opened')
socket.socket.connect = refuse; socket.create_connection = refuse; socket.getaddrinfo = refuse
from utils.workbook.mistakes import named_mistakes
raise SystemExit(named_mistakes(sample=True))
"""


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_a_named_mistake_of_each_chapter_changes_an_output_and_no_socket_is_opened():
    said = run("-c", WITHOUT_SOCKETS, HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0", HF_DATASETS_OFFLINE="0")
    assert said.stdout.count("\n") >= 5 and "deprecated" not in said.stderr.lower()


def test_the_cell_that_shows_a_mistake_is_still_there():
    for row in tomllib.loads(LIST.read_text(encoding="utf-8"))["mistake"]:
        cells = read_notebook(SOLUTIONS / f"{row['chapter']}.ipynb").cells
        assert row["cell"] in {cell.id for cell in cells}, (row["chapter"], row["exercise"], row["cell"])


def test_two_short_chapters_give_the_same_on_another_machine():
    run("-m", "utils.workbook", "portable", "--sample", "--jobs", "1")


def test_the_checks_reject_a_sample_of_the_mutants():
    run("-m", "utils.workbook", "mutants", "--sample", "--jobs", "1")


def test_every_case_that_waits_for_test_full_is_run_there():
    run = {word for command in full.PARTS.values() for word in command}
    waits = {
        f"tests/{p.name}"
        for p in Path(__file__).parent.glob("test_*.py")
        if re.search(r'WORKBOOK_FULL"(\)| in os)', p.read_text())
    }
    assert waits and waits <= run
