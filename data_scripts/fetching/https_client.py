"""HTTPS requests to one pinned host: certificates always verified, other hosts never contacted."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.client import responses
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from gptoss20b.data.files import printable

from ..errors import CommandError
from .retry import RetryPolicy, TransientError

_MAX_REDIRECTS = 3
_LOGIN = "a set that needs a login cannot be fetched by this command: use MLCommons' own downloader"
# Overload, timeouts and the server's own errors are worth a retry; every other status is final.
_RETRIED_STATUSES = frozenset({408, 429, *range(500, 600)})
_HOST = re.compile(r"([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_T = TypeVar("_T")


class HttpsClient:
    """GET from the host of `source` and from no other.

    Proxies and certificate authorities come from the environment as usual (HTTPS_PROXY, REQUESTS_CA_BUNDLE).

    Attributes:
        stop: set to end all waits for a retry.

    Raises:
        CommandError: `source` is no https address.
    """

    def __init__(self, source: str, policy: RetryPolicy) -> None:
        self.stop = threading.Event()
        self._policy = policy
        # A requests.Session is not thread-safe: each thread gets its own.
        self._sessions = threading.local()
        self._pinned = _https_authority(source)
        if self._pinned is None:
            raise CommandError(
                f"{printable(source)}: got no https address; expected https://HOST/PATH. To fix: correct it."
            )

    def retry(self, attempt: Callable[[], _T]) -> _T:
        """Call `attempt` under the retry policy; see `RetryPolicy.call`."""
        return self._policy.call(attempt, self.stop)

    def check_host(self, url: str, origin: str) -> str:
        """Return an address unchanged if it is on the pinned host; `origin` names where it came from.

        Raises:
            CommandError: another scheme, host or port.
        """
        if _https_authority(url) != self._pinned:
            raise CommandError(
                f"{origin}: got the address {printable(url)}; expected https://{self._pinned}/, the only host that is "
                f"fetched from. To fix: if it is a login page, {_LOGIN}; else check --source."
            )
        return url

    def get(self, url: str, span: tuple[int, int] | None = None) -> requests.Response:
        """Make one attempt. Return a response of status 200 or 206 whose body is unread; the caller closes it.

        Args:
            url: an address on the pinned host.
            span: first and last byte to ask for; None asks for everything.

        Raises:
            CommandError: a final failure: another host, an invalid certificate, any other status.
            TransientError: no connection, a timeout, or a status worth a retry (408, 429, 5xx).
        """
        # Compressed transfer would make byte ranges meaningless.
        headers = {"Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1]}"
        origin = url
        for _ in range(_MAX_REDIRECTS + 1):
            response = self._request(self.check_host(url, origin), headers)
            if not response.is_redirect:
                return _check_status(response, url)
            response.close()
            origin, url = f"{url}: redirect", urljoin(url, response.headers["location"])
        raise CommandError(
            f"{origin}: got more than {_MAX_REDIRECTS} in a row; expected a file. To fix: check --source."
        )

    def _request(self, url: str, headers: dict[str, str]) -> requests.Response:
        if not hasattr(self._sessions, "session"):
            self._sessions.session = requests.Session()
        try:
            response: requests.Response = self._sessions.session.get(
                url, headers=headers, stream=True, allow_redirects=False, timeout=self._policy.timeout
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = root_cause(error)
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                raise CommandError(
                    f"{url}: got a certificate that cannot be verified ({reason}); expected one of a known authority. "
                    "To fix: check the clock, or name your proxy's authority in REQUESTS_CA_BUNDLE."
                ) from error
            raise TransientError(f"{url}: got no answer ({reason}); expected one") from error
        # requests 2.32 parses a redirect's address itself and lets a ValueError through.
        except (requests.RequestException, ValueError) as error:
            raise CommandError(
                f"{printable(url)}: cannot be requested ({printable(str(error))}). To fix: check --source."
            ) from error
        return response


def root_cause(error: BaseException) -> str:
    """Return the innermost message of a chained HTTP error, which is that of the operating system or of TLS."""
    while error.__context__ is not None:
        error = error.__context__
    return printable(str(error) or type(error).__name__)


def _https_authority(url: str) -> str | None:
    """Return host and port of an https address in one spelling, or None if it is anything else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    # Only a narrow alphabet is accepted (no user, backslash or space), so that no two URL parsers can disagree.
    authority = parts.netloc.lower().removesuffix(":443")
    plain = url.isascii() and url.isprintable() and _HOST.fullmatch(authority)
    return authority if plain and parts.scheme == "https" else None


def _check_status(response: requests.Response, url: str) -> requests.Response:
    status = response.status_code
    if status in {200, 206}:
        return response
    response.close()
    got = f"{url}: got status {status} {responses.get(status, '')}".rstrip()
    if status in _RETRIED_STATUSES:
        raise TransientError(f"{got}; expected 200 or 206", retry_after(response.headers.get("retry-after", "")))
    fix = _LOGIN if status in {401, 403} else "check --source, or run again later if the server is being changed"
    raise CommandError(f"{got}; expected 200 or 206. To fix: {fix}.")


def retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks to wait, by number or date; 0 if it is neither."""
    try:
        return Retry().parse_retry_after(value)
    # HTTPError: neither number nor date. The others: numbers and years without a meaning.
    except (HTTPError, ValueError, OverflowError):
        return 0.0
