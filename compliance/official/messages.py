"""Messages of the official tools: captured and shortened to one line each, without colour or repeated context."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

MAX_MESSAGES, MAX_MESSAGE_LENGTH = 20, 300
_SEPARATOR = "\n" + "-" * 30 + "\n"
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_FOLDER, _FILE = "Running compliance checks in dir ", "Running compliance on file: "


class Complaints(logging.Handler):
    """Warnings and errors that an official tool logs.

    Attributes:
        general: messages on a folder, with its name, or on everything.
        of_files: messages on single logs, each with the log's name.
        success: True if the package checker ended with "FOUND NO ERRORS".
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.general: list[str] = []
        self.of_files: list[str] = []
        self.success = False
        self._folder = self._file = ""

    @property
    def messages(self) -> list[str]:
        """Return all messages, those on single logs last."""
        return self.general + self.of_files

    def emit(self, record: logging.LogRecord) -> None:
        """Split one log message by the format of the tool that logs it."""
        text = record.getMessage().strip()
        if record.levelno < logging.WARNING:
            self._track_progress(text)
        elif record.module == "mlp_compliance":
            # All complaints about one log in one message.
            self.of_files += [f"{self._file}: {part}" for part in text.split(_SEPARATOR)]
        elif record.module == "seed_checker":
            lines = text.replace("following errors: ", "following errors:\n").split("\n")
            self.general += [line for line in lines if line.startswith(("Result file ", "Error found "))]
        elif record.module == "system_desc_checker" and isinstance(record.args, tuple):
            system, reasons = record.args
            assert isinstance(reasons, list)
            self.general += [f"{system}: {reason}" for reason in reasons]
        else:
            self.general.append(f"{self._folder}: {text}" if self._folder else text)

    def _track_progress(self, text: str) -> None:
        """Remember the folder and file that the next warnings are about."""
        if text.startswith(_FOLDER):
            self._folder = text.removeprefix(_FOLDER)
        elif text.startswith(_FILE):
            self._file = text.removeprefix(_FILE)
        elif text.startswith("PACKAGE CHECKER FOUND NO ERRORS"):
            self.success = True


def shorten(message: str) -> str:
    r"""Return one line of at most 300 printable characters, without the context that official messages repeat.

    >>> shorten("CHECK for 'x' failed in line 3:\n:::MLLOG {}\nfailed test:  v > 0 \ncurrent context[s]={}")
    "CHECK for 'x' failed in line 3: failed test: v > 0"
    """
    first, *rest = message.strip().split("\n")
    tests = [line for line in rest if line.startswith("failed test:")]
    # "Failed executing CHECK code:" is followed by the code.
    more = tests[:1] or (rest[:1] if first.endswith(":") else [])
    # Some messages quote a line of the log, which may be megabytes long.
    text = " ".join(part[: 10 * MAX_MESSAGE_LENGTH] for part in (first, *more))
    text = " ".join(_TERMINAL_CODES.sub("", text).split())
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text if len(text) <= MAX_MESSAGE_LENGTH else text[: MAX_MESSAGE_LENGTH - 3] + "..."


def shorten_all(messages: Iterable[str]) -> list[str]:
    """Return at most 20 distinct short messages. A last one counts the others."""
    short = list(dict.fromkeys(shorten(message) for message in messages))
    if len(short) > MAX_MESSAGES:
        hidden = len(short) - MAX_MESSAGES + 1
        short[MAX_MESSAGES - 1 :] = [f"{hidden} more messages are not shown"]
    return short
