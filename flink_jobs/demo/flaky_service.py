"""A small HTTP service that is not well, for the delivery demo: on loopback.

    python -m flink_jobs.demo.flaky_service --port-file F

It answers POST with 200, some with 503 or 429 (then with Retry-After), those of one user in a
hundred with 404, and for some seconds in the middle nothing works at all.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

_BUSY_SHARE: Final = 0.05
_OUTAGE_AFTER: Final = 0.4
_LIFETIME_S: Final = 900.0


class Service(ThreadingHTTPServer):
    """The service: it counts what it is asked, and is down for a while."""

    daemon_threads = True

    def __init__(self, requests: int, outage_s: float) -> None:
        """Take how many good requests are awaited, and for how long it is down."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self._outage_at = round(requests * _OUTAGE_AFTER)
        self._outage_s = outage_s
        self._down_until_s = 0.0
        self._count = 0
        self._lock = threading.Lock()

    def status(self, body: bytes) -> int:
        """What is answered to an event."""
        with self._lock:
            self._count += 1
            count = self._count
            if count == self._outage_at:
                self._down_until_s = time.monotonic() + self._outage_s
            if time.monotonic() < self._down_until_s:
                return 503
        user = str(json.loads(body).get("user_id", ""))
        if zlib.crc32(user.encode()) % 100 == 0:
            return 404
        busy = zlib.crc32(b"%d" % count) / 2**32
        return 503 if busy < _BUSY_SHARE / 2 else 429 if busy < _BUSY_SHARE else 200


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body go at once: else the client waits for the second of two small packets.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:  # the name that the library calls
        """Answer."""
        assert isinstance(self.server, Service)  # noqa: S101 # it is nobody else's
        status = self.server.status(self.rfile.read(int(self.headers["Content-Length"])))
        answer = b"{}" if status == 200 else b'{"error": "not now"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the library's name
        """Say nothing."""


def main() -> None:
    """Serve until the process is ended; after a quarter of an hour by itself."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--outage-s", type=float, default=8.0)
    call = parser.parse_args()
    service = Service(call.requests, call.outage_s)
    written = call.port_file.with_suffix(".tmp")
    written.write_text(str(service.server_port))
    written.replace(call.port_file)
    end = threading.Timer(_LIFETIME_S, service.shutdown)
    end.daemon = True
    end.start()
    service.serve_forever()


if __name__ == "__main__":
    main()
