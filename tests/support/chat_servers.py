"""A server with OpenAI's chat API on this machine, whose replies a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Chats(ThreadingHTTPServer):
    """The server of `model`; `url` is its address, and `asked` holds the requests: path, headers and JSON."""

    daemon_threads = True
    model = "served"
    asked: list[tuple[str, dict[str, str], Any]]
    reply: Callable[[dict[str, Any]], tuple[int, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Chats

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send({})

    def do_POST(self) -> None:
        self.send(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def send(self, payload: dict[str, Any]) -> None:
        self.server.asked.append((self.path, dict(self.headers), payload))
        status, content = 200, {"data": [{"id": self.server.model}]}
        if self.path.endswith("/chat/completions"):
            status, content = self.server.reply(payload)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if isinstance(content, dict) and "Location" in content:
            self.send_header("Location", content["Location"])
        self.send_header("Content-Length", str(len(data) + isinstance(content, Cut)))
        self.end_headers()
        self.wfile.write(data)


class Cut(bytes):
    """A body whose connection is closed a byte before its end."""


def completion(content: Any, **more: Any) -> tuple[int, Any]:
    """A reply of the API; `more` are keys of its choice."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": content}, **more}]}


@contextmanager
def serve(reply: Callable[[dict[str, Any]], tuple[int, Any]]) -> Iterator[Chats]:
    """Serve as long as the block runs; `reply` gets a request's JSON and returns status and content."""
    server = Chats(("127.0.0.1", 0), Handler)
    server.asked, server.reply = [], reply
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
