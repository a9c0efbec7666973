"""Structured logs: a line of JSON an event."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from typing import IO

from camrt.results import json_line
from converters.errors import printable

LOGGER = "camrt.serve"
_MOST = 300  # characters of a text that a client sent


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON: time (UTC), level, logger, event, and the fields of ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            line[name] = printable(value, _MOST) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json_line(line)


def _log_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    logging.getLogger(LOGGER).warning("warning", extra={"fields": {"kind": category.__name__, "text": str(message)}})


@contextlib.contextmanager
def json_logs(stream: IO[str] | None = None) -> Iterator[None]:
    """Write the records of camrt and uvicorn, and warnings, as lines of JSON while the block runs.

    Args:
        stream: Where they go; stderr if left out.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("camrt", "uvicorn")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if logger.name == "camrt" else logging.WARNING)
    show = warnings.showwarning
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        warnings.showwarning = show
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
