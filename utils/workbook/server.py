"""The lab's server part: the start page, the exercises' states, one kernel a notebook, and a calm last line."""

import asyncio
import collections
import contextlib
import json
import logging
import os
import sys

import tornado.web
from jupyter_server.base.handlers import APIHandler
from jupyter_server.services.sessions.sessionmanager import SessionManager

from utils.checks.progress import WORK
from utils.workbook import ROOT
from utils.workbook.start_page import DOCUMENTS, name_of, page, rows

LOG = ".lab.log"  # in `work/`: what the server and its kernels say after the line with the URL


class Start(APIHandler):
    """What the lab's tab and panel show: `{"page": HTML, "chapters": […], "fault": sentence}`."""

    @tornado.web.authenticated
    def get(self):
        found, fault = rows()
        chapters = [
            {
                "file": row.file,
                "number": row.number,
                "title": row.title,
                "exercises": [{**e, "name": name_of(e), "state": row.state(e)} for e in row.exercises],
            }
            for row in found
        ]
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps({"page": page(base_url=self.base_url), "chapters": chapters, "fault": fault}))


class Document(APIHandler):
    """The Markdown of docs/NAME.md, for the names that the start page links."""

    @tornado.web.authenticated
    def get(self, name):
        path = ROOT / "docs" / f"{name}.md"
        if name not in DOCUMENTS or not path.exists():
            raise tornado.web.HTTPError(404)
        self.set_header("Content-Type", "text/markdown; charset=utf-8")
        self.finish(path.read_text(encoding="utf-8"))


class OneKernelEach(SessionManager):
    """Two tabs that open one notebook at the same moment get one kernel: the second waits for the first one's."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.starting = collections.defaultdict(asyncio.Lock)

    async def create_session(self, path=None, *args, **kwargs):
        async with self.starting[path]:
            if await self.session_exists(path=path):
                return await self.get_session(path=path)
            return await super().create_session(path, *args, **kwargs)


class OneLine(logging.Filter):
    """In place of the server's six lines about its URL, one."""

    def __init__(self, app):
        super().__init__()
        self.app = app

    def filter(self, record: logging.LogRecord) -> bool:
        if "To access the server" not in record.getMessage():
            return True
        print(f"JupyterLab (Ctrl-C stops it): {self.app.connect_url.split()[0]}", flush=True)
        with contextlib.suppress(OSError):  # from here on the terminal is quiet; kernels inherit it
            os.dup2(os.open(WORK / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), sys.stderr.fileno())
        return False


def _jupyter_server_extension_points():
    return [{"module": "utils.workbook.server"}]


def _load_jupyter_server_extension(app):
    base = app.web_app.settings["base_url"].rstrip("/")
    handlers = [(f"{base}/workbook/start", Start), (rf"{base}/workbook/document/([\w-]+)", Document)]
    app.web_app.add_handlers(".*$", handlers)
    app.log.addFilter(OneLine(app))
