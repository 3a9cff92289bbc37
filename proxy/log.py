"""Our own log, apart from the access log: short lines for people on a terminal, JSON otherwise, to stderr."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import Any

import orjson

# What every LogRecord has; everything else came in by ``extra`` and is a field of the event.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, also for exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(_fields(record))
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """``09:26:12 warning identity_refused path=... problem=...``"""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = " ".join(f"{key}={value}" for key, value in _fields(record).items() if key != "event")
        text = f"{clock} {record.levelname.lower():7} {record.getMessage()}"
        if fields:
            text += "  " + fields
        if record.exc_info and record.exc_info[0] is not None:
            text += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return text


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def set_up(levels: str, form: str) -> None:
    """``levels``: ``info`` or ``info,proxy.upstream=debug``. ``form``: json, text, or auto (by the terminal)."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for part in levels.split(","):
        name, _, level = part.strip().rpartition("=")
        logging.getLogger(name or None).setLevel(level.upper() or "INFO")
