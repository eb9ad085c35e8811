"""What the server holds: the data's address, the MD5 list beside it, and each file's size."""

import re
import threading
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import HTTPError

from data_scripts.checksums import parse_list
from data_scripts.errors import CommandError
from data_scripts.fetching.web import PassingError, Patience, Web, cause
from gptoss20b.data.files import printable
from gptoss20b.data.md5_list import ListedFile

_LONGEST_ADDRESS = 4 << 10
_LONGEST_LIST = 1 << 20
_SUFFIX = ".uri"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")


class Published(NamedTuple):
    """The list of a set: the address all its files are below, the files, and the list's own bytes."""

    base: str
    files: tuple[ListedFile, ...]
    text: bytes


class Remote(NamedTuple):
    """A file on the server.

    Attributes:
        url: its address.
        size: bytes.
        etag: its version as the server names it; empty if it does not.
        ranges: the server sends parts of it.
    """

    url: str
    size: int
    etag: str
    ranges: bool


class Span(NamedTuple):
    """Which bytes an answer holds: the first, and the size of the whole file."""

    first: int
    size: int


def fetch_list(web: Web, source: str, patience: Patience, stop: threading.Event) -> Published:
    """Fetch the metadata file at `source` and the list beside it.

    Raises:
        CommandError: one of them is missing, too long, or not what it should be.
    """
    if not urlsplit(source).path.endswith(_SUFFIX):
        raise CommandError(
            f"{printable(source)}: got no name that ends in {_SUFFIX}; expected the metadata file. To fix: check --source."
        )
    text = patience.persist(lambda: _read(web, source, _LONGEST_ADDRESS), stop)
    base = web.check(text.decode("utf-8", "replace").strip(), f"{source}: base address")
    beside = urlsplit(source)
    address = beside._replace(path=beside.path.removesuffix(_SUFFIX) + ".md5").geturl()
    listed = patience.persist(lambda: _read(web, address, _LONGEST_LIST), stop)
    return Published(base.rstrip("/"), parse_list(listed, address), listed)


def probe(web: Web, base: str, path: str, patience: Patience, stop: threading.Event) -> Remote:
    """Ask for the size of a file by its first byte.

    Raises:
        CommandError: the server has no such file, or does not say its size.
    """
    url = f"{base}/{quote(path)}"

    def attempt() -> Remote:
        with web.get(url, (0, 0)) as response:
            span = span_of(response, url)
            ranges = response.status_code == 206
            if ranges:
                # read to the end, so that the connection can be used again
                _body(response, url, limit=1)
            return Remote(url, span.size, response.headers.get("etag", ""), ranges)

    return patience.persist(attempt, stop)


def span_of(response: requests.Response, url: str) -> Span:
    """Which bytes of a file an answer of status 200 or 206 holds.

    Raises:
        CommandError: the server does not say it.
    """
    if response.status_code == 206:
        got = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(got)
        if match is not None:
            return Span(int(match[1]), int(match[3]))
        raise CommandError(f"{url}: got the content-range '{printable(got)}'; expected bytes FIRST-LAST/SIZE.")
    length = response.headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,15}", length):
        raise CommandError(f"{url}: got no content-length; expected the file's size. To fix: use another --source.")
    return Span(0, int(length))


def _read(web: Web, url: str, limit: int) -> bytes:
    with web.get(url) as response:
        return _body(response, url, limit)


def _body(response: requests.Response, url: str, limit: int) -> bytes:
    data = b""
    try:
        # A cut body shows only when it is read to its end.
        while len(data) <= limit and (block := response.raw.read(limit + 1 - len(data))):
            data += block
    except HTTPError as error:
        raise PassingError(f"{url}: got a cut answer ({cause(error)}); expected all of it") from error
    if len(data) > limit:
        raise CommandError(f"{url}: got more than {limit} bytes; expected a short text. To fix: check --source.")
    return data
