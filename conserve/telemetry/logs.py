"""How programs that people look at write their log: to standard error, warnings and worse."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_program_logs(level: int = logging.WARNING) -> None:
    """For commands at a terminal. Serve's processes keep structlog's defaults: everything, into Ray's log files."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
