"""Diagrams of the chapters 00 to 04: tools, tokens, the transformer, sampling, hooks."""

from utils.workbook.diagrams.canvas import Canvas


def einsum() -> Canvas:
    """Two tables with named sides, and the table of their sums of products."""
    c = Canvas(720, 236, 'einsum(q, k, "query d, key d -> query key")')
    c.text(24, 26, 'einsum(q, k, "query d, key d -> query key")', anchor="start", mono=True)
    for x, name, side in ((130, "q", "query"), (330, "k", "key")):
        for row in range(3):
            for column in range(4):
                lit = row == (1 if name == "q" else 2)
                colour = ("blue" if name == "q" else "orange") if lit else "line"
                c.box(x - 48 + 32 * column, 84 + 28 * row, 32, 28, colour=colour, filled=0.3 if lit else 0)
        c.text(x, 56, "d", "green", mono=True)
        c.text(x - 74, 112, side, anchor="end", mono=True, size=14)
        c.text(x, 182, name, bold=True)
    c.text(440, 112, "→", size=22)
    for row in range(3):
        for column in range(3):
            lit = row == 1 and column == 2
            c.box(568 + 44 * column, 84 + 28 * row, 44, 28, colour="pink" if lit else "line", filled=0.3 if lit else 0)
    c.text(612, 56, "key", mono=True, size=14)
    c.text(534, 112, "query", anchor="end", mono=True, size=14)
    c.text(612, 182, "result", bold=True)
    c.text(360, 214, "d is missing on the right: its products are summed up", "green")
    return c


def merges() -> Canvas:
    """The words cat (three times) and at (twice), their pairs counted, and two merges."""
    c = Canvas(720, 250, "Two steps of byte-pair encoding on the words cat and at")
    columns = ((120, "symbols"), (360, "after the first merge"), (600, "after the second"))
    words = ((("c", "a", "t"), ("a", "t")), (("c", "at"), ("at",)), (("cat",), ("at",)))
    counts = (("a t: 5", "c a: 3"), ("c at: 3",), ("no pair is left",))
    for (x, title), pair, count in zip(columns, words, counts, strict=True):
        c.text(x, 28, title, bold=True)
        for y, symbols, times in ((76, pair[0], 3), (130, pair[1], 2)):
            widths = [22 + 12 * len(s) for s in symbols]
            at = x - 20 - sum(widths) / 2
            for s, width in zip(symbols, widths, strict=True):
                new = len(s) > 1
                c.box(at + width / 2, y, width - 4, 30, s, "blue" if new else "line", True, 0.15 if new else 0)
                at += width
            c.text(x + 48, y, f"× {times}", "soft", anchor="start")
        for i, pair in enumerate(count):
            at = x + 84 * (i - (len(count) - 1) / 2)
            c.text(at, 184, pair, "orange" if ":" in pair else "soft", mono=":" in pair, size=14)
    for x, what in ((240, "a t"), (480, "c at")):
        c.line((x - 24, 103), (x + 24, 103))
        c.text(x, 84, what, "orange", mono=True, size=14)
    c.text(360, 224, "count all pairs of neighbours, join the most frequent one everywhere, begin again", "soft", 14)
    return c


def river() -> Canvas:
    """The residual stream as a river: parts read it and add to it, nothing is overwritten."""
    c = Canvas(720, 330, "The residual stream as a river with its tributaries")
    c.path("M96,165 H610", "blue", 24, arrow=False, opacity=0.35)
    c.text(566, 140, "residual stream", "blue", 14)
    for y, name, side in ((96, "token", "W_E"), (234, "position", "W_pos")):
        bend = 165 + (8 if y > 165 else -8)
        c.path(
            f"M60,{y + (18 if y < 165 else -18)} C60,165 78,{bend} 112,{bend}", "green", 7, arrow=False, opacity=0.75
        )
        c.box(60, y, 84, 32, name, "green")
        c.text(88, (y + 165) / 2 + (2 if y > 165 else -2), side, "soft", 13, "start", mono=True)
    for x, name, y in ((190, "attention", 70), (280, "MLP", 260), (440, "attention", 70), (530, "MLP", 260)):
        up = -1 if y < 165 else 1
        colour = "pink" if name == "attention" else "orange"
        c.line((x - 28, 165 + 13 * up), (x - 28, y - 20 * up), dashed=True)
        c.path(f"M{x + 24},{y - 18 * up} C{x + 24},{165 + 30 * up} {x + 36},{165 + 8 * up} {x + 66},{165 + 8 * up}",
               colour, 7, arrow=False, opacity=0.75)  # fmt: skip
        c.box(x, y, 100, 34, name, colour, filled=0.08)
    c.text(235, 28, "block 0", "soft")
    c.text(485, 28, "block 1", "soft")
    c.line((612, 165), (640, 165), colour="blue", width=2.4)
    c.box(676, 165, 66, 32, "logits", "blue")
    c.text(654, 198, "LayerNorm, W_U", "soft", 13)
    c.line((40, 306), (84, 306), dashed=True)
    c.text(92, 306, "reads the stream", "soft", 14, "start")
    c.path("M280,306 H324", "orange", 7, arrow=False, opacity=0.75)
    c.text(332, 306, "adds to it: nothing in the stream is overwritten", "soft", 14, "start")
    return c


def cache() -> Canvas:
    """Keys and values kept over three steps: each new token adds a column, and has the only query."""
    c = Canvas(720, 262, "The cache of keys and values grows by one column a token")
    text = ("The", "cat", "sat", "on", "a")
    steps = ((30, "The prompt is read", 3, 0), (250, "one token more", 4, 3), (486, "and one more", 5, 4))
    for left, title, length, new_from in steps:
        xs = [left + 62 + 36 * i for i in range(length)]
        c.text(left + 20, 28, title, anchor="start", bold=True)
        for x, token in zip(xs, text[:length], strict=True):
            new = xs.index(x) >= new_from
            c.text(x, 62, token, "blue" if new else "soft", 13, mono=True)
            for y in (146, 182):
                c.box(x, y, 34, 28, colour="blue" if new else "line", filled=0.28 if new else 0.08)
            if new:
                c.box(x, 94, 34, 24, colour="orange", filled=0.28)
        for x in xs:
            c.line((xs[-1], 107), (x, 131), colour="orange", width=1.2, arrow=False)
        if left == 30:
            for y, name in ((94, "queries"), (146, "keys"), (182, "values")):
                c.text(left + 38, y, name, anchor="end", size=13)
    c.box(60, 232, 20, 16, colour="blue", filled=0.28)
    c.text(76, 232, "computed in this step", "soft", 14, "start")
    c.box(260, 232, 20, 16, colour="line", filled=0.08)
    c.text(276, 232, "kept in the cache", "soft", 14, "start")
    c.box(436, 232, 20, 16, colour="orange", filled=0.28)
    c.text(452, 232, "used once: its row of the pattern", "soft", 14, "start")
    return c


def beam() -> Canvas:
    """A beam search of width two as a tree, with the sums of an invented example."""
    c = Canvas(720, 330, "Beam search of width two as a tree")
    for x, title in ((80, "prompt"), (300, "step 1"), (560, "step 2")):
        c.text(x, 26, title, bold=True)
    first = {"cat": (-0.5, 90, True), "dog": (-0.9, 190, True), "old": (-2.3, 275, False)}
    second = [
        ("cat", "sat", -2.1, 66, False), ("cat", "ran", -2.4, 114, False),
        ("dog", "ran", -1.3, 166, True), ("dog", "barked", -2.0, 216, True),
    ]  # fmt: skip
    steps = [((122, 170), (256, y), total, kept) for total, y, kept in first.values()]
    steps += [((344, first[p][1]), (512, y), total - first[p][0], kept) for p, _, total, y, kept in second]
    for start, end, _, kept in steps:
        c.line(start, end, colour="blue" if kept else "line", width=2.4 if kept else 1.4, dashed=not kept)
    for (x0, y0), (x1, y1), step, _ in steps:
        c.text((x0 + x1) / 2, (y0 + y1) / 2 - 12, f"{step:.1f}".replace("-", "−"), "soft", 13)
    c.box(80, 170, 80, 32, "The", mono=True)
    for token, (_, y, kept) in first.items():
        c.box(300, y, 84, 32, token, "blue" if kept else "line", True, 0.15 if kept else 0, not kept)
    for _, token, total, y, kept in second:
        c.box(560, y, 92, 32, token, "blue" if kept else "line", True, 0.15 if kept else 0, not kept)
        c.text(620, y, f"{total:.1f}".replace("-", "−"), "blue" if kept else "soft", 14, "start", bold=kept)
    c.line((480, 275), (516, 275), colour="blue", width=2.4)
    c.text(524, 275, "kept: the two best sums", "soft", 14, "start")
    c.line((480, 303), (516, 303), dashed=True)
    c.text(524, 303, "dropped", "soft", 14, "start")
    c.text(30, 303, "on the arrows: log-probabilities of an invented example", "soft", 14, "start")
    return c


def hooks() -> Canvas:
    """A hook point three times: nothing hangs there, something looks, something puts in another value."""
    c = Canvas(720, 210, "What a function at a hook point can do")
    rows = (
        (44, "no hook", "", "the value goes on as it is"),
        (106, "a hook that looks", "looks", "it keeps the value; the same value goes on"),
        (168, "a hook that edits", "edits", "what it returns goes on instead"),
    )
    for y, title, what, says in rows:
        changed = what == "edits"
        c.text(24, y, title, anchor="start", bold=True)
        c.line((176, y), (226, y), colour="blue", width=2.4)
        c.dot(236, y, 7, "orange" if what else "line")
        c.line((246, y), (312, y), colour="pink" if changed else "blue", width=2.4)
        if what:
            c.path(f"M236,{y - 8} C236,{y - 26} 258,{y - 24} 268,{y - 24}", "orange", 1.6)
            c.text(276, y - 24, "cache" if what == "looks" else "function", "orange", 13, "start")
        c.text(328, y, says, "soft", anchor="start")
    return c


DRAWINGS = (einsum, merges, river, cache, beam, hooks)
