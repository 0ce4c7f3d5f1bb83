"""What check cells record: by any number of kernels at once, whatever state the files are in."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from utils.checks import progress
from utils.workbook import ROOT


def test_solved_stays_solved(tmp_path):
    for state in ("tried", "solved", "taken", "tried"):
        progress.record("sample", "double", state, tmp_path)
    progress.record("sample", "half", "taken", tmp_path)
    assert progress.load(tmp_path) == {"sample": {"double": "solved", "half": "taken"}}


def record_many(folder, number):
    for k in range(200):
        progress.record("sample", f"exercise_{number}_{k}", "solved", folder)
        progress.record("sample", "shared", "solved" if number == k == 3 else "tried", folder)


def test_eight_kernels_at_once(tmp_path, capfd):
    jobs = [multiprocessing.get_context("fork").Process(target=record_many, args=(tmp_path, n)) for n in range(8)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    states = progress.load(tmp_path)["sample"]
    assert len(states) == 1601 and set(states.values()) == {"solved"}
    assert capfd.readouterr().err == ""


def test_what_the_first_version_recorded_counts(tmp_path):
    old = {"sample": {"double": "solved", "half": "tried"}}
    (tmp_path / ".progress.json").write_text(json.dumps(old))
    progress.record("sample", "half", "solved", tmp_path)
    assert progress.load(tmp_path) == {"sample": {"double": "solved", "half": "solved"}}


@pytest.mark.parametrize("damage", ['{"sample": {"dou', "[1, 2]", "\0", '{"sample": 3}'])
def test_a_damaged_old_file_is_said_once_and_kept(tmp_path, capsys, damage):
    for _ in range(2):  # twice in one second: two kept copies
        (tmp_path / ".progress.json").write_text(damage)
        assert progress.load(tmp_path) == {}
        assert "was damaged" in capsys.readouterr().err
    progress.record("sample", "double", "solved", tmp_path)
    assert progress.load(tmp_path) == {"sample": {"double": "solved"}}
    assert capsys.readouterr().err == ""
    kept = list(tmp_path.glob(".progress.damaged-*.json"))
    assert [p.read_text() for p in kept] == [damage, damage]


def folder_in_its_place(work):
    (work / ".progress.json").mkdir()


def file_in_its_place(work):
    (work / ".progress").write_text("")


def folder_for_a_mark(work):
    (work / ".progress" / "sample.double.solved").mkdir(parents=True)


def not_readable(work):
    (work / ".progress").mkdir(mode=0)


def not_writable(work):
    (work / ".progress.json").write_text("{")
    work.chmod(0o500)


def other_names(work):
    (work / ".progress").mkdir()
    for name in (".DS_Store", "._sample.double.solved", "a.b.c.solved", "sample.double.perfect"):
        (work / ".progress" / name).touch()


@pytest.mark.parametrize(
    "state",
    [folder_in_its_place, file_in_its_place, folder_for_a_mark, not_readable, not_writable, other_names],
)
def test_nothing_ends_a_check_cell_in_a_traceback(tmp_path, state):
    work = tmp_path / "work"
    work.mkdir()
    state(work)
    try:
        progress.record("sample", "double", "solved", work)
        assert set(progress.load(work)) <= {"sample"}
    finally:
        work.chmod(0o700)
        if state is not_readable:
            (work / ".progress").chmod(0o700)


def test_an_error_of_the_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.touch", full)
    progress.record("sample", "double", "solved", tmp_path)
    assert "could not be saved" in capsys.readouterr().err


def test_a_relative_folder_is_one_of_the_course(tmp_path):
    code = "from utils.checks import progress; print(progress.WORK)"
    env = {**os.environ, "WORKBOOK_WORK": "mine", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "mine")
