"""Diagrams of the chapters 05 to 11: heads and circuits, superposition, autoencoders, function vectors."""

from math import cos, radians, sin

from utils.workbook.diagrams.canvas import Canvas


def stripes() -> Canvas:
    """Three attention patterns of six tokens, one for each detector."""
    c = Canvas(720, 262, "The stripes that the three detectors measure")
    n, side = 6, 25
    kinds = (
        ("current", "blue", {(i, i) for i in range(1, n)}),
        ("previous", "orange", {(i, i - 1) for i in range(1, n)}),
        ("first", "green", {(i, 0) for i in range(1, n)}),
    )
    for left, (name, colour, lit) in zip((88, 310, 532), kinds, strict=True):
        c.text(left + 75, 26, name, colour, bold=True)
        for query in range(n):
            for key in range(query + 1):
                x, y = left + side * (key + 0.5), 66 + side * (query + 0.5)
                on = (query, key) in lit
                skipped = (query, key) == (0, 0) and name != "previous"
                c.box(
                    x, y, side - 2, side - 2, colour=colour if on else "line", filled=0.8 if on else 0, dashed=skipped
                )
        c.text(left + 75, 52, "key →", "soft", 13)
    c.text(78, 141, "query ↓", "soft", 13, "end")
    c.box(90, 240, 20, 16, colour="line", dashed=True)
    c.text(108, 240, "query 0 has nothing but itself to attend to: left out", "soft", 14, "start")
    return c


def head() -> Canvas:
    """One attention head between two positions: the QK circuit says where to look, the OV circuit what to hand over."""
    c = Canvas(720, 330, "One attention head's two circuits")
    for x, name in ((70, "an earlier position"), (650, "this position")):
        c.path(f"M{x},286 V44", "blue", 14, arrow=False, opacity=0.35)
        c.text(max(x, 90) if x < 300 else min(x, 640), 306, name, "blue", 14)
    c.text(360, 40, "OV circuit: what is handed over", "green", bold=True)
    c.line((78, 94), (134, 94), colour="green", width=2.2)
    c.box(166, 94, 64, 34, "W_V", "green", True, 0.1)
    c.line((198, 94), (336, 94), colour="green", width=2.2)
    c.text(264, 80, "value", "soft", 13)
    c.line((384, 94), (520, 94), colour="green", width=2.2)
    c.box(552, 94, 64, 34, "W_O", "green", True, 0.1)
    c.line((584, 94), (640, 94), colour="green", width=2.2)
    c.text(612, 78, "adds", "soft", 13)
    c.line((360, 204), (360, 118), colour="orange", width=2.2)
    c.text(372, 152, "weight", "orange", 14, "start")
    c.box(360, 94, 44, 40, "×", "orange", size=20)
    c.line((78, 226), (134, 226), colour="orange", width=2.2)
    c.box(166, 226, 64, 34, "W_K", "orange", True, 0.1)
    c.line((198, 226), (286, 226), colour="orange", width=2.2)
    c.text(240, 212, "key", "soft", 13)
    c.box(360, 226, 142, 40, "q · k, softmax", "orange")
    c.line((640, 226), (584, 226), colour="orange", width=2.2)
    c.box(552, 226, 64, 34, "W_Q", "orange", True, 0.1)
    c.line((520, 226), (434, 226), colour="orange", width=2.2)
    c.text(478, 212, "query", "soft", 13)
    c.text(360, 276, "QK circuit: where the head looks", "orange", bold=True)
    return c


def induction() -> Canvas:
    """The induction circuit: a previous-token head in layer 0, an induction head in layer 1."""
    c = Canvas(720, 384, "The induction circuit with its two layers")
    xs = dict(A=170, B=290, dots=400, again=530)
    for name, x in xs.items():
        if name != "dots":
            c.path(f"M{x},316 V{84 if name == 'again' else 110}", "line", 10, arrow=False, opacity=0.35)
    for x, token in zip(xs.values(), ("A", "B", "…", "A"), strict=True):
        c.box(x, 336, 52, 34, token, mono=True)
    c.text(40, 336, "tokens", "soft", 14, "start")
    c.text(40, 246, "layer 0", bold=True, anchor="start")
    c.text(40, 156, "layer 1", bold=True, anchor="start")
    c.path("M176,288 C200,246 244,246 280,246", "orange", 2.4)
    c.text(302, 238, "previous-token head:", "orange", 14, "start")
    c.text(302, 257, "“A came before me”", "orange", 14, "start")
    c.path("M298,190 C380,136 450,136 520,146", "blue", 2.4)
    c.text(548, 138, "induction head:", "blue", 14, "start")
    c.text(548, 157, "“where did A come", "blue", 14, "start")
    c.text(548, 176, "before?” takes the B", "blue", 14, "start")
    c.text(284, 182, "key", "soft", 13, "end")
    c.text(516, 172, "query", "soft", 13, "end")
    c.line((530, 92), (530, 66), colour="blue", width=2.4)
    c.box(530, 46, 52, 34, "B", "blue", True, 0.15)
    c.text(570, 46, "comes next", "soft", 14, "start")
    c.text(360, 370, "A and B are any two tokens: it works on what the model has never seen", "soft", 14)
    return c


def arrows() -> Canvas:
    """Two features in two dimensions at right angles; three of them, where each throws a shadow on the others."""
    c = Canvas(720, 300, "Superposition as arrows in a plane")

    def plane(x, y, directions, title):
        c.text(x, 26, title, bold=True)
        c.line((x - 130, y), (x + 130, y), width=1, arrow=False)
        c.line((x, y - 110), (x, y + 60), width=1, arrow=False)
        for i, (angle, colour) in enumerate(directions):
            dx, dy = 100 * cos(radians(angle)), -100 * sin(radians(angle))
            c.line((x, y), (x + dx, y + dy), colour=colour, width=3)
            c.text(x + 1.22 * dx, y + 1.17 * dy, f"{i + 1}", colour, bold=True)

    plane(180, 180, ((0, "blue"), (90, "orange")), "two features, two dimensions")
    plane(540, 180, ((10, "blue"), (65, "orange"), (135, "green")), "three features, two dimensions")
    # The shadow of feature 1 on the line of feature 2.
    share = cos(radians(55))
    tip = (540 + 100 * cos(radians(10)), 180 - 100 * sin(radians(10)))
    foot = (540 + 100 * share * cos(radians(65)), 180 - 100 * share * sin(radians(65)))
    c.line(tip, foot, colour="pink", dashed=True, arrow=False)
    c.line((540, 180), foot, colour="pink", width=6, arrow=False)
    c.text(180, 268, "at right angles: each is read alone", "soft", 14)
    c.text(540, 268, "1 throws a shadow on 2: interference", "pink", 14)
    return c


def autoencoder() -> Canvas:
    """A toy autoencoder: two numbers in, five latents of which few are on, two numbers out."""
    c = Canvas(720, 270, "A sparse autoencoder of a toy model")
    for x, name, colour in ((90, "h", "blue"), (630, "h'", "pink")):
        for i in range(2):
            c.box(x, 110 + 36 * i, 44, 34, colour=colour, filled=0.25)
        c.text(x, 70, name, colour, 17, bold=True)
    for i in range(5):
        on = i in (1, 3)
        c.box(360, 56 + 36 * i, 44, 34, "" if on else "0", "green" if on else "line", filled=0.45 if on else 0)
    c.text(360, 22, "latents z", "green", bold=True)
    for x0, x1, name in ((114, 336, "W_enc, ReLU"), (384, 606, "Ŵ_dec")):
        c.line((x0, 128), (x1, 128), width=2.2)
        c.text((x0 + x1) / 2, 108, name, mono=True, size=14)
    c.path("M90,170 C90,238 630,238 630,170", "pink", 1.6, arrow=False, dashed=True)
    c.text(150, 250, "squared error: h' should be h", "pink", 14)
    c.text(560, 250, "sparsity: few z, small z", "green", 14)
    return c


def autoencoder_inside() -> Canvas:
    """An autoencoder between two layers of a language model; what it rebuilds goes on, the rest is its error."""
    c = Canvas(720, 330, "An autoencoder between two layers of a language model")
    c.box(80, 262, 116, 40, "earlier layers")
    c.box(640, 262, 116, 40, "later layers")
    c.line((138, 262), (196, 262), colour="blue", width=2.4)
    c.text(216, 262, "x", "blue", 17, bold=True)
    c.path("M216,248 V190", "blue", 2.4)
    c.box(216, 168, 130, 38, "encoder", "green", filled=0.08)
    c.path("M216,148 V104", "green", 2.4)
    c.text(360, 28, "many more latents than x has dimensions; most are 0", "green", 14)
    lit = {3, 11, 18}
    for i in range(22):
        c.box(142.5 + 20.7 * i, 78, 19, 40, colour="green" if i in lit else "line", filled=0.75 if i in lit else 0)
    c.path("M504,104 V148", "green", 2.4)
    c.box(504, 168, 130, 38, "decoder", "green", filled=0.08)
    c.path("M504,188 V246", "pink", 2.4)
    c.text(504, 262, "x'", "pink", 17, bold=True)
    c.line((524, 262), (580, 262), colour="pink", width=2.4)
    c.line((234, 262), (486, 262), dashed=True)
    c.text(360, 242, "error x − x'", "soft", 14)
    c.text(360, 310, "attached, the model goes on with x'; with the error term added, with x itself", "soft", 14)
    return c


def indirect_objects() -> Canvas:
    """The circuit that was found in GPT-2 small: who reads where, from the second John to the answer."""
    c = Canvas(720, 400, "The circuit of indirect objects that was found in GPT-2 small")
    xs = {"Mary": 90, "John": 210, "went": 320, "John ": 450, "to": 610}
    roles = ("IO", "S1", "S1+1", "S2", "END")
    for (token, x), role in zip(xs.items(), roles, strict=True):
        c.path(f"M{x},326 V{66 if role == 'END' else 110}", "line", 8, arrow=False, opacity=0.3)
        c.box(x, 342, 70, 32, token.strip(), mono=True)
        c.text(x, 376, role, "soft", 14)
    for x in (150, 386, 530):
        c.text(x, 342, "…", "soft")
    c.line((216, 300), (314, 300), colour="orange", width=2.2)
    c.text(264, 284, "previous token", "orange", 13)
    c.path("M326,262 C360,240 410,240 442,254", "orange", 2.2)
    c.text(384, 228, "induction", "orange", 13)
    c.path("M216,246 C260,196 390,196 444,214", "pink", 2.2)
    c.text(318, 188, "duplicate token", "pink", 13)
    c.path("M456,186 C500,160 560,162 602,174", "green", 2.2)
    c.text(532, 142, "S-inhibition", "green", 13)
    c.text(622, 188, "“not John”", "green", 13, "start")
    c.path("M98,128 C220,70 480,70 602,110", "blue", 2.6)
    c.text(330, 64, "name mover", "blue", 14, bold=True)
    c.line((610, 70), (610, 52), colour="blue", width=2.4)
    c.box(610, 34, 84, 32, "Mary", "blue", True, 0.15)
    return c


def function_vector() -> Canvas:
    """Heads at the last token of prompts with examples; their mean outputs, summed, added to a prompt without any."""
    c = Canvas(720, 330, "A function vector's way")
    c.text(170, 26, "prompts with examples", bold=True)
    for y, shown in ((64, "hot → cold"), (92, "big → small"), (120, "good →")):
        c.text(60, y, shown, anchor="start", mono=True, size=14)
    c.path("M128,130 V250", "blue", 12, arrow=False, opacity=0.35)
    for y, colour in ((172, "orange"), (214, "pink")):
        c.box(218, y, 84, 32, "a head", colour, filled=0.1)
        c.line((176, y), (136, y), colour=colour, width=2)
        c.line((260, y), (318, 193 + (y - 193) / 3), colour=colour, width=2)
    c.text(128, 274, "stream at the last token", "blue", 14)
    c.box(360, 193, 80, 44, "v", "green", filled=0.2, size=18)
    c.text(360, 144, "mean outputs,", "green", 14)
    c.text(360, 163, "summed", "green", 14)
    c.text(570, 26, "a prompt without examples", bold=True)
    c.text(570, 64, "old →", mono=True, size=14)
    c.path("M570,80 V250", "blue", 12, arrow=False, opacity=0.35)
    c.line((402, 193), (556, 193), colour="green", width=2.4)
    c.text(480, 176, "added", "green", 14)
    c.line((570, 254), (570, 276), colour="blue", width=2.4)
    c.box(570, 296, 84, 32, "new ?", "blue", True, 0.1)
    c.text(360, 240, "the function vector", "green", 14)
    return c


def transcoder() -> Canvas:
    """An MLP and, beside it, the transcoder that takes its place: from what it reads to what it makes."""
    c = Canvas(720, 350, "A transcoder in the place of an MLP")
    c.text(150, 24, "the MLP", bold=True)
    c.text(500, 24, "a transcoder", "green", bold=True)
    c.text(330, 316, "x, what the MLP reads", "blue", 14)
    c.line((180, 316), (240, 316), colour="blue", width=2.4, arrow=False)
    c.path("M150,300 V244", "blue", 2.4)
    c.path("M500,300 V244", "blue", 2.4)
    c.line((420, 316), (490, 316), colour="blue", width=2.4, arrow=False)
    shades = (0.55, 0.2, 0.7, 0.35, 0.1, 0.6, 0.4, 0.25)
    for i, shade in enumerate(shades):
        c.box(80 + 20 * i, 184, 18, 36, colour="orange", filled=shade)
    c.text(150, 226, "neurons, most half on", "orange", 14)
    lit = {4, 9}
    for i in range(15):
        c.box(360 + 20 * i, 184, 18, 36, colour="green" if i in lit else "line", filled=0.75 if i in lit else 0)
    c.text(500, 226, "many latents, few on", "green", 14)
    c.text(446, 136, "one direction written", "green", 13, "end")
    c.text(446, 268, "one direction read", "green", 13, "end")
    c.path("M460,240 L442,208", "green", 2)
    c.path("M442,160 L460,126", "green", 2)
    c.path("M150,160 V100", "pink", 2.4)
    c.path("M500,160 V100", "pink", 2.4)
    c.text(150, 78, "output", "pink", 15, bold=True)
    c.text(500, 78, "nearly the same output", "pink", 15, bold=True)
    c.path("M520,300 C700,290 700,110 590,92", "soft", 1.6, dashed=True)
    c.text(660, 268, "skip", "soft", 13)
    return c


DRAWINGS = (
    stripes,
    head,
    induction,
    arrows,
    autoencoder,
    autoencoder_inside,
    indirect_objects,
    function_vector,
    transcoder,
)
