"""NDIF's API behind a door that knows a key and a largest size; each accepted request's bytes are counted.

Runs in NDIF's environment, under gunicorn.
"""

import os

from ndif.services.api import app as service
from workbook_door import door


class Counted:
    """In place of NDIF's metric, which goes to a data base."""

    @staticmethod
    def update(payload_bytes: int, **_) -> None:
        with open(os.environ["WORKBOOK_NDIF_COUNTS"], "a", encoding="utf-8") as file:
            file.write(f"{payload_bytes}\n")


service.RequestSizeMetric = Counted
app = door(service.app, int(os.environ["WORKBOOK_NDIF_LIMIT"]), os.environ.get("WORKBOOK_NDIF_KEY", ""))
