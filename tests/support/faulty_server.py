"""An https server on 127.0.0.1 with the layout of the published set, and faults to inject."""

from __future__ import annotations

import hashlib
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, SO_LINGER, SOL_SOCKET
from typing import NamedTuple
from urllib.parse import unquote

import trustme

NAME = "llama-3-1-8b-preprocessed-c4-dataset"
URI, LIST, BASE = f"/metadata/{NAME}.uri", f"/metadata/{NAME}.md5", "/llama-3-1-8b/c4"


class Request(NamedTuple):
    """One request: its path, and the first and last byte of its range, if any."""

    path: str
    first: int | None
    last: int | None

    @property
    def probe(self) -> bool:
        return (self.first, self.last) == (0, 0)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes = b""


Action = Callable[["Handler", Reply], None]
FOREVER = 1_000_000


@dataclass
class Fault:
    """An action instead of the answer, `times` times; to probes, or to all other requests."""

    act: Action
    times: int = 1
    probes: bool = False


@dataclass
class FaultyServer:
    """Files by path, the requests received, and the bytes sent by path.

    Attributes:
        authority: host and port.
        authority_file: the certificate of its authority.
        ranges: whether byte ranges are sent.
        tags: the ETag of a path where it is not derived from the content.
    """

    authority: str
    authority_file: Path
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def source(self) -> str:
        return self.url(URI)

    def url(self, path: str) -> str:
        return f"https://{self.authority}{path}"

    def publish(self, files: dict[str, bytes]) -> None:
        """Publish a set: the metadata file, the MD5 list and the files."""
        self.files = {f"{BASE}/{path}": data for path, data in files.items()}
        self.files[URI] = f"{self.url(BASE)}\n".encode()
        lines = [f"{hashlib.md5(data).hexdigest()}  ./{path}\n" for path, data in files.items()]
        self.files[LIST] = "".join(lines).encode()

    def fault(self, path: str, act: Action, times: int = 1, probes: bool = False) -> None:
        self.faults.setdefault(path, []).append(Fault(act, times, probes))

    def take(self, request: Request) -> Action | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults.get(request.path, []):
                if fault.times and fault.probes == request.probe:
                    fault.times -= 1
                    return fault.act
        return None

    def spans(self, path: str) -> list[tuple[int, int]]:
        """List the byte ranges of a file that were requested, in order, without the probes."""
        return [
            (ask.first or 0, ask.last or 0) for ask in self.requests if ask.path == f"{BASE}/{path}" and not ask.probe
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    faulty: FaultyServer

    def do_GET(self) -> None:
        # Half of the tests have a client that disconnects in the middle.
        with suppress(OSError):
            path = unquote(self.path)
            request = Request(path, *self._range())
            act = self.faulty.take(request)
            reply = self._reply(path, request)
            if act is None:
                self.answer(reply)
            else:
                act(self, reply)

    def answer(self, reply: Reply) -> None:
        self.head(reply)
        self.body(reply.body)

    def head(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def body(self, data: bytes) -> None:
        self.wfile.write(data)
        with self.faulty.lock:
            self.faulty.sent[unquote(self.path)] += len(data)

    def abort(self, reset: bool) -> None:
        """Close the connection, with a TCP reset or without."""
        self.close_connection = True
        if reset:
            self.connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        """Print nothing; tests read `requests`."""

    def _range(self) -> tuple[int | None, int | None]:
        value = self.headers.get("Range")
        if value is None:
            return None, None
        first, _, last = value.removeprefix("bytes=").partition("-")
        return int(first), int(last)

    def _reply(self, path: str, request: Request) -> Reply:
        data = self.faulty.files.get(path)
        if data is None:
            return Reply(404, {}, b"no such thing")
        known = self.faulty.tags.get(path)
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"' if known is None else known
        if request.first is None or request.last is None or not self.faulty.ranges:
            return Reply(200, {"ETag": tag}, data)
        part = data[request.first : request.last + 1]
        if not part:
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"})
        last = request.first + len(part) - 1
        return Reply(206, {"ETag": tag, "Content-Range": f"bytes {request.first}-{last}/{len(data)}"}, part)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients that disconnect are part of the tests."""


@contextmanager
def serving(folder: Path) -> Iterator[FaultyServer]:
    """Run a server; the certificate of its authority goes into `folder`."""
    authority = trustme.CA()
    certificate = folder / "authority.pem"
    authority.cert_pem.write_to_path(str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)

    class BoundHandler(Handler):
        pass

    with _Server(("127.0.0.1", 0), BoundHandler) as server:
        # The handler's thread does the handshake, not the one that accepts.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        faulty = BoundHandler.faulty = FaultyServer(f"127.0.0.1:{server.server_port}", certificate)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield faulty
        finally:
            faulty.closing.set()
            server.shutdown()
            thread.join()


# --- faults


def status(code: int, **headers: str) -> Action:
    return lambda handler, reply: handler.answer(Reply(code, {k.replace("_", "-"): v for k, v in headers.items()}))


def redirect(location: str) -> Action:
    return status(302, location=location)


def answer(handler: Handler, reply: Reply) -> None:
    """Send the right answer, to place a fault after it."""
    handler.answer(reply)


def cut(after: int | None, reset: bool = False) -> Action:
    """Close the connection after some bytes of the body; None: before the answer."""

    def act(handler: Handler, reply: Reply) -> None:
        if after is not None:
            handler.head(reply)
            handler.body(reply.body[:after])
        handler.abort(reset)

    return act


def flip(handler: Handler, reply: Reply) -> None:
    """Flip one bit of the last byte."""
    handler.answer(Reply(reply.status, reply.headers, reply.body[:-1] + bytes([reply.body[-1] ^ 1])))


def with_headers(**headers: str) -> Action:
    renamed = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, reply: handler.answer(Reply(reply.status, {**reply.headers, **renamed}, reply.body))


def whole(handler: Handler, reply: Reply) -> None:
    """Send the whole file, though a range was requested."""
    handler.answer(Reply(200, {"ETag": reply.headers["ETag"]}, handler.faulty.files[unquote(handler.path)]))


def trickle(pieces: int, pause: float) -> Action:
    """Send the body in pieces, with a pause after each."""

    def act(handler: Handler, reply: Reply) -> None:
        handler.head(reply)
        size = -(-len(reply.body) // pieces)
        for start in range(0, len(reply.body), size):
            handler.body(reply.body[start : start + size])
            handler.faulty.closing.wait(pause)

    return act


class Hold:
    """Pauses in the middle of the body until released, or until the server ends."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, handler: Handler, reply: Reply) -> None:
        handler.head(reply)
        handler.body(reply.body[: self.after])
        self.reached.set()
        while not self.release.wait(0.05):
            if handler.faulty.closing.is_set():
                return handler.abort(reset=False)
        return handler.body(reply.body[self.after :])
