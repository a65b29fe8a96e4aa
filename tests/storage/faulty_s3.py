"""A proxy on loopback before an S3 server: it answers with errors, drops connections, cuts answers short, forgets conditions."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HEADERS_OF_ONE_HOP = {"connection", "content-length", "transfer-encoding", "expect", "host"}


class Fault(Enum):
    """What happens to a request."""

    INTERNAL_ERROR = auto()
    UNAVAILABLE = auto()
    SLOW_DOWN = auto()
    TOO_MANY = auto()
    DROP_BEFORE = auto()
    """The connection breaks before the server hears of the request."""
    DROP_AFTER = auto()
    """The server does what it is asked; its answer is lost."""
    CUT = auto()
    """The connection breaks in the middle of the answer's body, or before the answer where it has none."""
    SHORTEN = auto()
    """Half of the body arrives and its header says so too, as from a proxy that keeps cut files."""
    DELAY = auto()
    FORGET_CONDITION = auto()
    """If-None-Match is not heard."""
    REFUSE_CONDITION = auto()
    """A request with If-None-Match gets 501."""
    BARE_PRECONDITION = auto()
    """412, and not a word which condition failed."""


STATUS = {
    Fault.INTERNAL_ERROR: (500, "InternalError"),
    Fault.UNAVAILABLE: (503, "ServiceUnavailable"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.TOO_MANY: (429, "TooManyRequests"),
}
LASTING_STATUS = {Fault.BARE_PRECONDITION: (412, "PreconditionFailed")}
PASSING = [*STATUS, Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.CUT]
"""What a store recovers from by itself."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the proxy knows of a request when it decides: its number, counted from 0, and what is asked."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    num_bytes: int


def every(n: int, *faults: Fault) -> Callable[[Request], Fault | None]:
    """Every nth request meets a fault, one after the other."""
    return lambda request: faults[request.number // n % len(faults)] if request.number % n == n - 1 else None


def first(n: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """The first n requests meet a fault."""
    return lambda request: fault if request.number < n else None


@dataclass
class FaultyS3:
    """A running proxy.

    Attributes:
        decide: which fault a request meets, None for none; may be replaced at any time.
        seen: the requests since `start`, for tests that look at them.
    """

    server: tuple[str, int]
    decide: Callable[[Request], Fault | None] = lambda request: None
    delay_seconds: float = 0.2
    met: Counter[Fault] = field(default_factory=Counter)
    seen: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                proxy.serve(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do_any

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, address: object) -> None:
                pass  # a client that went away

        self._httpd = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._httpd.server_address[1]}"

    def start(self, decide: Callable[[Request], Fault | None]) -> None:
        """Count anew, with other faults."""
        with self._lock:
            self.decide = decide
            self.met.clear()
            self.seen.clear()

    def stop(self) -> None:
        """Close the port; who comes now is refused."""
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            request = Request(
                number=len(self.seen), method=handler.command, path=handler.path, headers=headers, num_bytes=len(body)
            )
            self.seen.append(request)
            fault = self.decide(request)
            if fault is not None:
                self.met[fault] += 1
        if fault in STATUS | LASTING_STATUS:
            return _answer(handler, *(STATUS | LASTING_STATUS)[fault])
        if fault is Fault.DROP_BEFORE:
            return _drop(handler)
        if fault is Fault.DELAY:
            time.sleep(self.delay_seconds)
        if "if-none-match" in headers:
            if fault is Fault.REFUSE_CONDITION:
                return _answer(handler, 501, "NotImplemented")
            if fault is Fault.FORGET_CONDITION:
                del headers["if-none-match"]
        connection = http.client.HTTPConnection(*self.server, timeout=60)
        try:
            sent = {name: value for name, value in headers.items() if name not in HEADERS_OF_ONE_HOP}
            connection.request(
                handler.command, handler.path, body=body or None, headers={**sent, "Content-Length": str(len(body))}
            )
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if fault is Fault.DROP_AFTER or (fault is Fault.CUT and not data):
            return _drop(handler)
        if fault is Fault.SHORTEN:
            data = data[: len(data) // 2]
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {*HEADERS_OF_ONE_HOP, "date", "server"}:
                handler.send_header(name, value)
        length = answer.getheader("Content-Length", "0") if handler.command == "HEAD" else str(len(data))
        handler.send_header("Content-Length", length)
        handler.end_headers()
        if fault is Fault.CUT:
            handler.wfile.write(data[: len(data) // 2])
            return _drop(handler)
        if handler.command != "HEAD":
            handler.wfile.write(data)
        return None


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    chunks = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        chunks.append(handler.rfile.read(size))
        handler.rfile.readline()
    while handler.rfile.readline().strip():
        pass
    return b"".join(chunks)


def _answer(handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
    data = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


def _drop(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
