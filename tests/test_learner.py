"""Start, update and progress of a learner's copies: each way in which work was lost once, and kills at any moment."""

import errno
import json
import lzma
import os
import random
import signal
import time
from pathlib import Path

import editors
import nbformat
import pytest
from editors import plain
from nbformat.sign import NotebookNotary
from small_course import SOURCE, cell

from utils.checks import progress
from utils.moved import Moved
from utils.workbook import CHAPTERS, ROOT, WorkbookError, delivery, execute, learner
from utils.workbook.build import build, read_notebook
from utils.workbook.files import HALF, write_whole
from utils.workbook.merge import digest

NEWER = SOURCE.replace("Some text", "Better text").replace("print(x)", "print('new', x)")


@pytest.fixture
def work(course):
    delivery.start(course[1], course[3])
    return course[3]


def edit(path, change):
    notebook = nbformat.read(path, 4)
    change(notebook)
    nbformat.write(notebook, path)


def sources(path):
    return [c.source for c in nbformat.read(path, 4).cells]


def deliver(course, source=NEWER):
    (course[0] / "01_sample.md").write_text(source)
    build(*course[:3])


def update(course):
    return learner.update(chapters=course[1], work=course[3])


def answer(notebook):
    """What a learner does: answers, changes a cell, adds one, and copies one."""
    cell(notebook, "device").source = "def device():\n    return 'mine'"
    cell(notebook, "device").outputs = [nbformat.v4.new_output("stream", text="out\n")]
    example = next(c for c in notebook.cells if c.source == "print(x)")
    example.source = "print(x)  # tried"
    index = [c.id for c in notebook.cells].index("check-device")
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell("my_own = 1"))
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("my notes"))


# ---------------------------------------------------------------- start


def test_start_never_overwrites(course, work):
    edit(work / "01_sample.ipynb", answer)
    before = (work / "01_sample.ipynb").read_text()
    assert delivery.start(course[1], work) == []
    assert (work / "01_sample.ipynb").read_text() == before


def test_start_announces_a_newer_version_only_where_there_is_one(course, work):
    edit(work / "01_sample.ipynb", lambda n: n.cells.pop(1))  # a deleted cell is none
    assert delivery.start(course[1], work) == []
    deliver(course)
    assert "newer version" in delivery.start(course[1], work)[0]
    update(course)
    assert delivery.start(course[1], work) == []


@pytest.mark.parametrize("length", [0, 1, 700])
def test_start_mends_a_copy_that_a_crash_cut_off(course, work, length):
    copy = work / "01_sample.ipynb"
    whole = copy.read_bytes()
    copy.write_bytes(whole[:length])
    (said,) = delivery.start(course[1], work)
    assert "a crash had cut it off; copied anew" in said
    assert copy.read_bytes() == whole
    (kept,) = (work / "backup").iterdir()
    assert kept.read_bytes() == whole[:length]


@pytest.mark.parametrize("damage", ["[", '{"cells": 3}', "\x80", "no notebook at all"])
def test_a_damaged_copy_is_left_alone(course, work, damage):
    copy = work / "01_sample.ipynb"
    copy.write_text(damage)
    with pytest.raises(WorkbookError, match="not a readable notebook.*backup/"):
        update(course)
    assert copy.read_text() == damage
    assert delivery.start(course[1], work) == []


def test_work_that_is_no_folder(course):
    course[3].write_text("")
    with pytest.raises(WorkbookError, match="can't be written"):
        delivery.start(course[1], course[3])


# ---------------------------------------------------------------- update


def test_update_keeps_everything_a_learner_wrote(course, work):
    copy = work / "01_sample.ipynb"
    edit(copy, answer)
    before = copy.read_text()
    deliver(course)
    said = update(course)
    assert "updated" in said[0] and "Reload Notebook from Disk" in said[-1]
    text = "\n".join(sources(copy))
    for kept in ("return 'mine'", "print(x)  # tried", "my_own = 1", "my notes", "Better text", "print('new', x)"):
        assert text.count(kept) == 1, kept
    assert "Some text" not in text and "print(x)" not in sources(copy)
    assert sources(copy)[0] == "my notes"
    assert sources(copy).index("my_own = 1") == sources(copy).index("device = check(device)") + 1
    assert cell(nbformat.read(copy, 4), "device").outputs
    (backup,) = (work / "backup").glob("*.ipynb")
    assert backup.read_text() == before
    assert update(course) == ["01_sample: up to date."]


def renewed(nb):
    for n, c in enumerate(nb.cells):
        c.id = f"id{n}"


def stripped(nb):
    for c in nb.cells:
        c.metadata = nbformat.from_dict({})


def both(nb):
    renewed(nb), stripped(nb)


def windows(nb):
    for c in nb.cells:
        c.source = c.source.replace("\n", "\r\n")


def old_format(nb):
    for c in nb.cells:
        del c["id"]
    nb.nbformat_minor = 0


@pytest.mark.parametrize("tool", [renewed, stripped, both, windows, old_format])
@pytest.mark.parametrize("known", [True, False], ids=["delivered known", "from the first version"])
def test_tools_that_change_ids_metadata_and_line_ends(course, work, tool, known):
    """An answer stays at its exercise, its stub does not come back, and the new text arrives."""
    copy = work / "01_sample.ipynb"
    edit(copy, answer)
    edit(copy, tool)
    if not known:
        (work / delivery.DELIVERED / "01_sample.ipynb").unlink()
    deliver(course)
    said = update(course)
    cells = nbformat.read(copy, 4).cells
    texts = [c.source.replace("\r\n", "\n") for c in cells]
    at = texts.index("def device():\n    return 'mine'")
    assert cells[at].id == "device" and texts[at + 1 : at + 3] == ["device = check(device)", "my_own = 1"]
    assert not any("raise NotImplementedError" in t for t in texts)
    assert sum("Better text" in t for t in texts) == 1
    assert not any("no longer in the chapter" in s for s in said)
    assert update(course) == ["01_sample: up to date."]


def test_nbformat_3(course, work):
    copy = work / "01_sample.ipynb"
    edit(copy, answer)
    copy.write_text(json.dumps(editors.Nbformat3().save(plain(nbformat.read(copy, 4)))))
    assert json.loads(copy.read_text())["nbformat"] == 3
    update(course)
    assert cell(nbformat.read(copy, 4), "device").source.endswith("return 'mine'")


@pytest.mark.parametrize("kind", ["raw", "markdown"])
@pytest.mark.parametrize("id", ["device", "check-device", "about-device"])
def test_a_cell_of_another_type(course, work, kind, id):
    """Pressing R on one cell ended the update of every chapter."""

    def change(notebook):
        c = cell(notebook, id)
        c.cell_type = kind
        for key in ("outputs", "execution_count"):
            c.pop(key, None)

    copy = work / "01_sample.ipynb"
    edit(copy, change)
    update(course)
    now, new = nbformat.read(copy, 4), nbformat.read(course[1] / "01_sample.ipynb", 4)
    assert [(c.cell_type, c.source) for c in now.cells] == [(c.cell_type, c.source) for c in new.cells]
    edit(copy, answer)
    edit(copy, change)
    update(course)
    assert cell(nbformat.read(copy, 4), "device").source.endswith("return 'mine'")


def test_merged_split_and_pasted_cells(course, work):
    lab, copy = editors.JupyterLab(), work / "01_sample.ipynb"
    edit(copy, answer)
    notebook = plain(nbformat.read(copy, 4))
    cells = notebook["cells"]
    at = next(k for k, c in enumerate(cells) if c["id"] == "device")
    cells.append(lab.pasted(cells[at - 1]))  # a copy of a delivered text
    lab.merge(cells, at)  # the answer and its check: a new id
    copy.write_text(json.dumps(notebook))
    deliver(course)
    said = update(course)
    texts = sources(copy)
    assert texts.count("def device():\n    return 'mine'\n\ndevice = check(device)") == 1
    assert not any("raise NotImplementedError" in t or t == "device = check(device)" for t in texts)
    assert sum(t.startswith("*Difficulty") for t in texts) == 2
    assert delivery.start(course[1], work) == []
    notebook = plain(nbformat.read(copy, 4))
    at = next(k for k, c in enumerate(notebook["cells"]) if "mine" in c["source"])
    lab.split(notebook["cells"], at, len("def device():\n"))
    copy.write_text(json.dumps(notebook))
    said = update(course)
    assert not any("no longer" in s for s in said)
    assert sources(copy)[at : at + 2] == ["def device():", "    return 'mine'\n\ndevice = check(device)"]


def test_a_picture_in_a_delivered_cell_stays(course, work):
    copy, picture = work / "01_sample.ipynb", {"mine.png": {"image/png": "QUJD"}}
    edit(copy, lambda notebook: notebook.cells[0].update(attachments=picture))
    assert nbformat.read(copy, 4).cells[0].cell_type == "markdown"
    deliver(course)
    update(course)
    assert [c.attachments for c in nbformat.read(copy, 4).cells if c.get("attachments")] == [picture]


def test_all_cells_pasted_once_more_keep_their_ids_once_and_nothing_warns(course, work, recwarn):
    copy = work / "01_sample.ipynb"
    edit(copy, answer)
    notebook = plain(nbformat.read(copy, 4))
    ids = [c["id"] for c in notebook["cells"]]
    copy.write_text(json.dumps({**notebook, "cells": notebook["cells"] * 2}))
    deliver(course)
    update(course)
    cells = json.loads(copy.read_text())["cells"]
    assert len({c["id"] for c in cells}) == len(cells) >= 2 * len(ids) and not list(recwarn)


def test_update_says_that_a_task_has_changed(course, work):
    edit(work / "01_sample.ipynb", answer)
    deliver(course)
    new = nbformat.read(course[1] / "01_sample.ipynb", 4)
    cell(new, "device").source += "  # another stub"
    nbformat.write(new, course[1] / "01_sample.ipynb")
    note = "  device: the task has changed; your answer is kept, the new one is in chapters/."
    assert note in update(course)
    assert "mine" in cell(nbformat.read(work / "01_sample.ipynb", 4), "device").source
    assert update(course) == ["01_sample: up to date."]


def test_update_keeps_an_answer_whose_exercise_is_gone(course, work):
    edit(work / "01_sample.ipynb", answer)
    new = nbformat.read(course[1] / "01_sample.ipynb", 4)
    new.cells = [c for c in new.cells if "device" not in c.id]
    nbformat.write(new, course[1] / "01_sample.ipynb")
    assert any("utils.runtime.device: no longer in the chapter" in s for s in update(course))
    assert any("return 'mine'" in s for s in sources(work / "01_sample.ipynb"))


def test_what_jupyterlab_saves_during_an_update_is_merged(course, work, monkeypatch):
    copy, merge = work / "01_sample.ipynb", learner.merge

    def saved_meanwhile(*args):
        monkeypatch.setattr(learner, "merge", merge)
        edit(copy, lambda n: n.cells.append(nbformat.v4.new_code_cell("saved_meanwhile = 1")))
        return merge(*args)

    deliver(course)
    monkeypatch.setattr(learner, "merge", saved_meanwhile)
    update(course)
    assert "saved_meanwhile = 1" in sources(copy) and any("Better text" in s for s in sources(copy))


@pytest.mark.parametrize("trusted", [True, False])
def test_trust_is_kept_and_never_given(course, work, trusted, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    copy = work / "01_sample.ipynb"
    edit(copy, answer)
    if trusted:
        NotebookNotary().sign(nbformat.read(copy, 4))
    deliver(course)
    update(course)
    assert NotebookNotary().check_signature(nbformat.read(copy, 4)) == trusted


def test_outputs_of_every_kind_pass_as_they_are(course, work):
    copy = work / "01_sample.ipynb"
    edit(copy, answer)
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["a\n", 'b "outputs": 0\n']},
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": "iVBO", "text/html": ["<b>\n", "é</b>"]}},
        {"output_type": "execute_result", "execution_count": 3, "metadata": {}, "data": {"a/b+json": {"x": [1, 2.5]}}},
        {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["1", "2"]},
        {"output_type": "what is this", "x": None},
    ]
    raw = json.loads(copy.read_text())
    kept = [c for c in raw["cells"] if c["cell_type"] == "code" and c["source"] != ["x = 1"]]
    for c in kept:
        c["outputs"] = outputs
    copy.write_text(json.dumps(raw))
    deliver(course)
    update(course)
    now = {"".join(c["source"]): c.get("outputs") for c in json.loads(copy.read_text())["cells"]}
    for c in kept:
        assert now["".join(c["source"])] == outputs
    assert now["x = 1"] == []


@pytest.mark.parametrize("key", ["id", "source", "metadata", "outputs", "execution_count"])
@pytest.mark.parametrize("value", ["missing", None, 5])
def test_cells_that_lack_something(course, work, key, value):
    """As scripts and exporters write them; a number is taken where it can only be an id."""
    copy = work / "01_sample.ipynb"
    raw = json.loads(copy.read_text())
    raw["cells"].append({"cell_type": "code", "source": "mine = 1", "metadata": {}, "outputs": [], "id": "mine"})
    for c in (c for c in raw["cells"] if c["source"] != "mine = 1" and (key in c or value != "missing")):
        if c["cell_type"] == "code" or key not in ("outputs", "execution_count"):
            c.pop(key, None) if value == "missing" else c.update({key: value})
    copy.write_text(json.dumps(raw))
    before = copy.read_bytes()
    deliver(course)
    try:
        said = update(course)
    except WorkbookError as error:
        assert value == 5 and "othing was changed" in str(error) and copy.read_bytes() == before
    else:
        assert "updated" in said[0] and "up to date" in update(course)[0]
        assert "mine = 1" in sources(copy) and sum("Better text" in text for text in sources(copy)) == 1


def test_half_a_character_stands_as_it_was(course, work):
    """JavaScript cuts emojis in two; such a half has no UTF-8, but an escape in a notebook."""
    copy = work / "01_sample.ipynb"
    raw = json.loads(copy.read_text())
    halves = {"cell_type": "code", "source": "x = '\ud83d'", "metadata": {}, "execution_count": 1, "id": "mine"}
    raw["cells"].append({**halves, "outputs": [{"output_type": "stream", "name": "stdout", "text": "\udfff"}]})
    copy.write_text(json.dumps(raw))
    deliver(course)
    assert "updated" in update(course)[0]
    cell = json.loads(copy.read_text())["cells"][-1]
    assert "".join(cell["source"]) == "x = '\ud83d'" and cell["outputs"][0]["text"] == "\udfff"


def test_a_copy_like_none_that_we_know_stops_no_other(course, work, monkeypatch):
    def fail(*args):
        raise KeyError("odd")

    monkeypatch.setattr(learner, "merge", fail)
    with pytest.raises(WorkbookError, match="01_sample: nothing was changed, .*KeyError.*make start"):
        update(course)


# ---------------------------------------------------------------- what moved


def test_every_exercise_of_the_first_version_is_here_or_in_the_list_of_what_moved():
    packed = (Path(__file__).parent / "fixtures" / "first_version.json.xz").read_bytes()
    first = json.loads(lzma.decompress(packed))
    targets = {exercise for cells in first.values() for _, _, exercise, _ in cells if exercise}
    chapters = {p.stem for p in CHAPTERS.glob("*.ipynb")}
    here = {c.metadata.get("exercise") for p in CHAPTERS.glob("*.ipynb") for c in read_notebook(p).cells}
    moved = Moved()
    assert len(targets) > 100
    lost = {t for t in targets if not set(moved.homes(t)) <= here}
    assert not lost, "add to chapters/moved.toml where these are now"
    lost = {c for c in first if not set(moved.chapter_homes(c)) <= chapters}
    assert not lost, "add to chapters/moved.toml what these chapters have become"


def test_all_the_work_of_the_first_version_moves_into_todays_chapters(tmp_path, monkeypatch):
    """Every exercise answered, a note and a scratch cell behind each check, a guess in each prediction."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    packed = (Path(__file__).parent / "fixtures" / "first_version.json.xz").read_bytes()
    moved, wrote, own = Moved(), {}, []
    for name, cells in json.loads(lzma.decompress(packed)).items():
        old = notebook(*((kind, id, text, target) if target else (kind, id, text) for kind, id, target, text in cells))
        cells = []
        for c in old.cells:
            cells.append(c)
            if target := c.metadata.get("exercise"):
                c.source = f"# answered {target}\n" + c.source.replace("raise NotImplementedError", "return 'mine'")
                wrote[target] = c.source
            if c.id.startswith("check-"):
                own.append(f"note_behind_{name}_{c.id}")
                cells.append(nbformat.v4.new_markdown_cell(own[-1]))
            if "> **Predict.**" in c.source:
                c.source += f"\n\nMy guess {len(own)}."
                own.append(c.source)
        old.cells = cells
        write_whole(tmp_path / f"{name}.ipynb", nbformat.writes(old))
    learner.update(chapters=CHAPTERS, work=tmp_path)
    files = {p.stem: p.read_bytes() for p in tmp_path.glob("*.ipynb")}
    assert set(files) == {p.stem for p in CHAPTERS.glob("*.ipynb")}
    now = {name: nbformat.reads(text.decode(), 4).cells for name, text in files.items()}
    texts = [c.source for cells in now.values() for c in cells]
    assert len(wrote) > 100 and all(texts.count(t) == 1 for t in [*wrote.values(), *own])
    for target, text in wrote.items():
        for name, cells in now.items():
            here = [k for k, c in enumerate(cells) if c.metadata.get("exercise") in moved.homes(target)]
            if here:
                parts = sum(moved.homes(other) == moved.homes(target) for other in wrote)  # that became one exercise
                around = [c.source for c in cells[max(0, here[0] - 2) : here[-1] + 2 + parts]]
                assert text in around, f"{target} is not at its exercise in {name}"
                break
        else:
            pytest.fail(f"{target} has no place")
    learner.update(chapters=CHAPTERS, work=tmp_path)
    assert files == {p.stem: p.read_bytes() for p in tmp_path.glob("*.ipynb")}


def notebook(*cells):
    made = []
    for kind, id, source, *exercise in cells:
        c = nbformat.v4.new_code_cell(source) if kind == "code" else nbformat.v4.new_markdown_cell(source)
        c.id, c.metadata = id, nbformat.from_dict({"workbook": digest(source)})
        if exercise:
            c.metadata["exercise"] = exercise[0]
        made.append(c)
    return nbformat.v4.new_notebook(cells=made)


def exercise(module, name):
    stub = f"def {name}():\n    raise NotImplementedError"
    return [("code", name, stub, f"utils.{module}.{name}"), ("code", f"check-{name}", f"{name} = check({name})")]


def test_a_chapter_becomes_two_and_exercises_become_one(tmp_path):
    chapters, work = tmp_path / "chapters", tmp_path / "work"
    chapters.mkdir()
    old = notebook(
        ("markdown", "m1", "# Old chapter"), *exercise("old", "a"), ("markdown", "m2", "Then:"), *exercise("old", "b"),
        *exercise("old", "c"),
    )  # fmt: skip
    nbformat.write(old, chapters / "07_old.ipynb")
    delivery.start(chapters, work)

    def write(n):
        for name in "abc":
            cell(n, name).source = f"def {name}():\n    return 'my {name}'"
        n.cells.insert(4, nbformat.v4.new_code_cell("mine_behind_then = 1"))
        cell(n, "m2").source += "\n\nI guess 3."

    edit(work / "07_old.ipynb", write)
    for name in "ab":
        progress.record("old", name, "solved", work)
    progress.record("old", "c", "tried", work)
    (chapters / "07_old.ipynb").unlink()
    nbformat.write(notebook(("markdown", "m3", "# One"), *exercise("one", "a")), chapters / "07_one.ipynb")
    two = notebook(("markdown", "m4", "# Two"), ("markdown", "m2", "Then:"), *exercise("two", "d"))
    nbformat.write(two, chapters / "08_two.ipynb")
    (chapters / "moved.toml").write_text(
        '[chapters]\n"07_old" = ["07_one", "08_two"]\n'
        '[exercises]\n"utils.old.a" = "utils.one.a"\n"utils.old.b" = "utils.two.d"\n"utils.old.c" = "utils.two.d"\n'
    )
    assert any("07_old.ipynb is now 07_one and 08_two" in s for s in delivery.start(chapters, work))
    said = learner.update(chapters=chapters, work=work)
    assert any("07_old: has become other chapters; your work is in 07_one and 08_two" in s for s in said)
    assert not (work / "07_old.ipynb").exists() and list((work / "backup").glob("07_old-*.ipynb"))
    assert sources(work / "07_one.ipynb") == ["# One", "def a():\n    return 'my a'", "a = check(a)"]
    second = sources(work / "08_two.ipynb")
    for kept in ("def b():\n    return 'my b'", "def c():\n    return 'my c'", "mine_behind_then = 1"):
        assert second.count(kept) == 1, kept
    assert second.count("Then:\n\nI guess 3.") == 1 and sum("def d()" in s for s in second) == 1
    assert "up to date" in learner.update(chapters=chapters, work=work)[0]
    # d is solved only where both that it came from are.
    assert "07_one" in (table := learner.progress_table(chapters, work))
    assert [row.split()[1] for row in table.splitlines()[1:]] == ["1", "0"]
    progress.record("old", "c", "solved", work)
    assert [row.split()[1] for row in learner.progress_table(chapters, work).splitlines()[1:]] == ["1", "1"]


def test_progress_table(course, work):
    progress.record("runtime", "device", "solved", work)
    table = learner.progress_table(course[1], work)
    assert "01_sample" in table and "1 of 1" in table


# ---------------------------------------------------------------- crashes


def in_a_child(job, seconds):
    """Run `job` again and again in another process, and kill it after that time."""
    child = os.fork()
    if not child:
        try:
            while True:
                job()
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def delay(seed):
    return random.Random(seed).uniform(0, 0.05)


def state(folder):
    """Every file but backups, which are written beside and renamed as well, and half files."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != HALF}


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@needs_fork
def test_kills_of_start(course, tmp_path):
    for seed in range(30):
        work = tmp_path / f"work{seed}"

        def job(work=work):
            delivery.start(course[1], work)
            (work / "01_sample.ipynb").unlink()

        in_a_child(job, delay(seed))
        for name in ("01_sample.ipynb", f"{delivery.DELIVERED}/01_sample.ipynb"):
            if (work / name).exists():
                assert (work / name).read_bytes() == (course[1] / "01_sample.ipynb").read_bytes()
        delivery.start(course[1], work)
        assert nbformat.read(work / "01_sample.ipynb", 4).cells


@needs_fork
def test_kills_of_update(course, work, tmp_path):
    edit(work / "01_sample.ipynb", answer)
    before = (work / "01_sample.ipynb").read_bytes()
    deliver(course)
    update(course)
    after = (work / "01_sample.ipynb").read_bytes()
    seen = set()
    for seed in range(30):

        def job():
            write_whole(work / "01_sample.ipynb", before)
            update(course)

        in_a_child(job, delay(seed))
        now = (work / "01_sample.ipynb").read_bytes()
        seen.add(now == after)
        assert "return 'mine'" in now.decode()
        texts = sources(work / "01_sample.ipynb")
        assert now == before or sum("Better text" in t for t in texts) == 1
    assert seen == {True, False} or len(seen) == 1


@needs_fork
def test_kills_of_build(course):
    source, chapters, solutions, _ = course
    texts = [SOURCE, NEWER]
    whole = set()
    for text in texts:
        deliver(course, text)
        whole |= {p.read_bytes() for d in (chapters, solutions) for p in d.glob("*.ipynb")}
    for seed in range(30):

        def job():
            for text in texts:
                (source / "01_sample.md").write_text(text)
                build(source, chapters, solutions)

        in_a_child(job, delay(seed))
        assert {p.read_bytes() for d in (chapters, solutions) for p in d.glob("*.ipynb")} <= whole


@needs_fork
def test_kills_of_execute(course, monkeypatch):
    """The run of the cells writes nothing; it is left out, so that the kills meet the writing."""
    path = course[2] / "01_sample.ipynb"
    before = path.read_bytes()

    def run(notebook, path):
        for c in notebook.cells:
            if c.cell_type == "code":
                c.outputs = [nbformat.v4.new_output("stream", text="out\n" * 10_000)]

    monkeypatch.setattr(execute, "_run", run)
    monkeypatch.setattr(execute, "chapter_names", lambda wanted: ["01_sample"])
    execute.execute(None, course[2])
    after = path.read_bytes()
    assert after != before
    for seed in range(30):

        def job():
            write_whole(path, before)
            execute.execute(None, course[2])

        in_a_child(job, delay(seed))
        assert path.read_bytes() in (before, after)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    "number, sentence", [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "check the folder's permissions")]
)
def test_a_full_disk_is_said_and_nothing_is_half(course, work, monkeypatch, call, number, sentence):
    edit(work / "01_sample.ipynb", answer)
    deliver(course)
    before = state(work)

    def fail(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    for job in (lambda: update(course), lambda: delivery.start(course[1], work.parent / "other")):
        with pytest.raises(WorkbookError, match=sentence):
            job()
    monkeypatch.undo()
    assert {p: b for p, b in state(work).items() if p.parts[0] != "backup"} == before
    assert not list(work.parent.rglob(f"*{HALF}"))


def test_half_files_of_a_crash_are_removed(course, work):
    halves = [work / ".01_sample.ipynb.1234.half", work / "01_sample.half"]
    for half in halves:
        half.write_text("{")
    delivery.start(course[1], work)
    assert all(h.exists() for h in halves)  # another process may still write them
    for half in halves:
        os.utime(half, (0, 0))
    delivery.start(course[1], work)
    assert not any(h.exists() for h in halves)


def test_write_whole_keeps_links_and_permissions(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "there").chmod(0o640)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"
    assert (tmp_path / "there").stat().st_mode & 0o777 == 0o640


OWN = ("files.py", "environment.py", "noise.py", "ndif.py")


def test_nothing_writes_in_place():
    """Every file of the course's machinery goes through `write_whole`."""
    # Left out: what runs before there are packages, a kernel's start-up file in a folder of its own, and a server's
    # folder, which is made anew at each start.
    for path in {*(ROOT / "utils" / "workbook").glob("*.py")} - {ROOT / "utils" / "workbook" / name for name in OWN}:
        assert "write_text(" not in path.read_text(), path.name
