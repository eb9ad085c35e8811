"""Requests to one pinned host: https only, certificates always verified, and what is worth another attempt."""

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests

from data_scripts.errors import CommandError
from gptoss20b.data.files import printable

_REDIRECTS = 3
_LOGIN = "a set that needs a login cannot be fetched by this command: use MLCommons' own downloader"
# overload, time limits and the server's own troubles pass; everything else stays as it is
_PASSING = frozenset({408, 429, *range(500, 600)})
_HOST = re.compile(r"([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_LONGEST_WAIT = 60.0
_T = TypeVar("_T")


class PassingError(Exception):
    """Another attempt may get past it. The message is one line.

    Attributes:
        asked: seconds that the server asked to wait.
        progress: the attempt brought something that the next one builds on.
    """

    def __init__(self, message: str, asked: float = 0.0, progress: bool = False) -> None:
        super().__init__(message)
        self.asked = asked
        self.progress = progress


class StoppedError(Exception):
    """The download was told to stop, and nobody needs the result."""


@dataclass(frozen=True)
class Patience:
    """How long a failure is put up with.

    Attributes:
        retries: attempts after a first one that failed, in a row without progress.
        first_wait: seconds before the first of them; doubled each time, up to a minute.
        timeout: seconds without a byte, or without a connection, that end an attempt.
    """

    retries: int
    first_wait: float
    timeout: float

    def wait(self, failures: int, asked: float) -> float:
        """Seconds before the next attempt: a random part of the doubled wait, so that streams do not come in step."""
        doubled: float = min(self.first_wait * 2 ** min(failures - 1, 30), _LONGEST_WAIT)
        return max(doubled * random.uniform(0.5, 1.0), min(asked, _LONGEST_WAIT))

    def persist(self, attempt: Callable[[], _T], stop: threading.Event) -> _T:
        """Repeat an attempt until it succeeds.

        Raises:
            CommandError: the attempt cannot succeed, or failed once more than `retries` in a row without progress.
            StoppedError: `stop` was set during a wait.
        """
        failures = 0
        while True:
            try:
                return attempt()
            except PassingError as error:
                failures = 1 if error.progress else failures + 1
                if failures > self.retries:
                    tries = "once" if failures == 1 else f"{failures} times in a row"
                    raise CommandError(
                        f"{error}, {tries}. To fix: start the same command again later; what was fetched is kept."
                    ) from error
                wait = self.wait(failures, error.asked)
            if stop.wait(wait):
                raise StoppedError


class Web:
    """GET from the host of `source` and from no other.

    Proxies and certificate authorities come from the environment as usual (HTTPS_PROXY, REQUESTS_CA_BUNDLE).

    Raises:
        CommandError: `source` is no https address.
    """

    def __init__(self, source: str, timeout: float) -> None:
        self._timeout = timeout
        self._sessions = threading.local()
        self._pinned = _authority(source)
        if self._pinned is None:
            raise CommandError(
                f"{printable(source)}: got no https address; expected https://HOST/PATH. To fix: correct it."
            )

    def check(self, url: str, where: str) -> str:
        """The address as it is, if it is on the pinned host; `where` says who gave it.

        Raises:
            CommandError: another scheme, host or port.
        """
        if _authority(url) != self._pinned:
            raise CommandError(
                f"{where}: got the address {printable(url)}; expected https://{self._pinned}/, the only host that is "
                f"fetched from. To fix: if it is a login page, {_LOGIN}; else check --source."
            )
        return url

    def get(self, url: str, span: tuple[int, int] | None = None) -> requests.Response:
        """One attempt: an answer of status 200 or 206 with its body still to be read; the caller closes it.

        Args:
            url: an address on the pinned host.
            span: first and last byte asked for; None asks for everything.

        Raises:
            CommandError: refused for good: another host, a certificate that does not fit, any other status.
            PassingError: no connection, a timeout, or a status that passes (408, 429, 5xx).
        """
        headers = {"Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1]}"
        where = url
        for _ in range(_REDIRECTS + 1):
            response = self._ask(self.check(url, where), headers)
            if not response.is_redirect:
                return _good(response, url)
            response.close()
            where, url = f"{url}: redirect", urljoin(url, response.headers["location"])
        raise CommandError(f"{where}: got more than {_REDIRECTS} in a row; expected a file. To fix: check --source.")

    def _ask(self, url: str, headers: dict[str, str]) -> requests.Response:
        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        try:
            response: requests.Response = self._sessions.session.get(
                url, headers=headers, stream=True, allow_redirects=False, timeout=self._timeout
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = cause(error)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise CommandError(
                    f"{url}: got a certificate that cannot be verified ({reason}); expected one of a known authority. "
                    "To fix: check the clock, or name your proxy's authority in REQUESTS_CA_BUNDLE."
                ) from error
            raise PassingError(f"{url}: got no answer ({reason}); expected one") from error
        # Requests itself takes a redirect's address apart, and lets a ValueError through.
        except (requests.RequestException, ValueError) as error:
            raise CommandError(
                f"{printable(url)}: cannot be asked for ({printable(str(error))}). To fix: check --source."
            ) from error
        return response


def cause(error: BaseException) -> str:
    """What lies under an error of the HTTP libraries, in the words of the operating system or of TLS."""
    while error.__context__ is not None:
        error = error.__context__
    return printable(str(error) or type(error).__name__)


def _authority(url: str) -> str | None:
    """Host and port of an https address, in one spelling; None if it is anything else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    # Compared as text and spelt in a narrow alphabet, so that no two parsers can read it differently: no user, no
    # backslash, no space.
    authority = parts.netloc.lower().removesuffix(":443")
    plain = url.isascii() and url.isprintable() and _HOST.fullmatch(authority)
    return authority if plain and parts.scheme == "https" else None


def _good(response: requests.Response, url: str) -> requests.Response:
    status = response.status_code
    if status in {200, 206}:
        return response
    response.close()
    got = f"{url}: got status {status} {responses.get(status, '')}".rstrip()
    if status in _PASSING:
        raise PassingError(f"{got}; expected 200 or 206", seconds_asked(response.headers.get("retry-after", "")))
    fix = _LOGIN if status in {401, 403} else "check --source, or start again later if the server is being changed"
    raise CommandError(f"{got}; expected 200 or 206. To fix: {fix}.")


def seconds_asked(retry_after: str) -> float:
    """The seconds a server asks to wait, by a number or a date (maybe one that is past); 0 if it is neither."""
    if retry_after.isdecimal():
        # an absurd number of digits is a long wait, no overflow
        return float(retry_after[:9])
    try:
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
