"""Ask the server what it holds: the base address of the data, the MD5 list beside it, and each file's size."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import requests
from urllib3.exceptions import HTTPError

from gptoss20b.data.files import printable

from ..errors import CommandError
from ..md5_list import ListedFile, parse_list
from .https_client import HttpsClient, root_cause
from .retry import TransientError

_MAX_ADDRESS_BYTES = 4 << 10
_MAX_LIST_BYTES = 1 << 20
_SUFFIX = ".uri"
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")


class RemoteList(NamedTuple):
    """The published list: the address below which all files are, the files, and the list's own bytes."""

    base: str
    files: tuple[ListedFile, ...]
    text: bytes


class RemoteFile(NamedTuple):
    """A file on the server.

    Attributes:
        url: its address.
        size: bytes.
        etag: its version as the server names it; empty if it does not.
        ranges: whether the server sends byte ranges.
    """

    url: str
    size: int
    etag: str
    ranges: bool


class ContentRange(NamedTuple):
    """The bytes in a response: the first one, and the size of the whole file."""

    first: int
    size: int


def fetch_list(client: HttpsClient, source: str) -> RemoteList:
    """Fetch the metadata file at `source` and the MD5 list beside it.

    Raises:
        CommandError, DataError: one of them is missing, too long or malformed.
    """
    address = urlsplit(source)
    if not address.path.endswith(_SUFFIX):
        raise CommandError(
            f"{printable(source)}: got no name that ends in {_SUFFIX}; expected the metadata file. "
            "To fix: check --source."
        )
    text = client.retry(lambda: _get_text(client, source, _MAX_ADDRESS_BYTES))
    base = client.check_host(text.decode("utf-8", "replace").strip(), f"{source}: base address")
    list_url = address._replace(path=address.path.removesuffix(_SUFFIX) + ".md5").geturl()
    listed = client.retry(lambda: _get_text(client, list_url, _MAX_LIST_BYTES))
    return RemoteList(base.rstrip("/"), parse_list(listed, list_url), listed)


def probe_file(client: HttpsClient, base: str, path: str) -> RemoteFile:
    """Request the first byte of a file to learn its size, its tag and whether the server sends ranges.

    Raises:
        CommandError: the server has no such file, or does not tell its size.
    """
    url = f"{base}/{quote(path)}"

    def attempt() -> RemoteFile:
        with client.get(url, (0, 0)) as response:
            size = content_range(response, url).size
            ranges = response.status_code == 206
            if ranges:
                # Read to the end, so that the connection can be reused.
                _read_body(response, url, limit=1)
            return RemoteFile(url, size, response.headers.get("etag", ""), ranges)

    return client.retry(attempt)


def content_range(response: requests.Response, url: str) -> ContentRange:
    """Return which bytes of a file a response of status 200 or 206 holds.

    Raises:
        CommandError: the headers do not tell.
    """
    if response.status_code == 206:
        got = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(got)
        if match is None:
            raise CommandError(f"{url}: got the content-range '{printable(got)}'; expected bytes FIRST-LAST/SIZE.")
        return ContentRange(int(match[1]), int(match[3]))
    length = response.headers.get("content-length", "")
    if not re.fullmatch("[0-9]{1,15}", length):
        raise CommandError(f"{url}: got no content-length; expected the file's size. To fix: use another --source.")
    return ContentRange(0, int(length))


def _get_text(client: HttpsClient, url: str, limit: int) -> bytes:
    with client.get(url) as response:
        return _read_body(response, url, limit)


def _read_body(response: requests.Response, url: str, limit: int) -> bytes:
    data = b""
    try:
        # urllib3 notices a truncated body only when it is read to its end.
        while len(data) <= limit and (block := response.raw.read(limit + 1 - len(data))):
            data += block
    except HTTPError as error:
        raise TransientError(f"{url}: got a truncated answer ({root_cause(error)}); expected all of it") from error
    if len(data) > limit:
        raise CommandError(f"{url}: got more than {limit} bytes; expected a short text. To fix: check --source.")
    return data
