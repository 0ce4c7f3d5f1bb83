"""`make test`'s samples of what `make test-full` runs in full."""

import subprocess
import sys

from utils.workbook import ROOT


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "utils.workbook", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_named_mistake_of_each_chapter_changes_an_output():
    run("mistakes", "--sample")


def test_two_short_chapters_give_the_same_on_another_machine():
    run("portable", "--sample", "--jobs", "1")
