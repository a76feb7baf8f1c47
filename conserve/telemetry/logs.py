"""How programs write their log: plain lines, and tracebacks without the values of variables, which may be prompts."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure_program_logs(level: int = logging.WARNING) -> None:
    """For commands at a terminal: warnings and worse, to standard error."""
    # Standard error is looked up at each line: a test or a caller may have replaced it meanwhile.
    _configure(level, lambda *args: structlog.PrintLogger(file=sys.stderr))


def configure_service_logs(level: int = logging.INFO) -> None:
    """For the processes of the Serve application: to standard output, which Ray keeps in its log files."""
    _configure(level, structlog.PrintLoggerFactory())


def _configure(level: int, factory: Any) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=factory,
    )
