"""A server on loopback that speaks the shape of OpenAI's chat completions, and says what a test tells it to say."""

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Say:
    """A response: a chat completion with `text`, unless `body` is given; `drop` closes the connection instead."""

    text: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    usage: tuple[int, int] | None = (100, 7)
    drop: bool = False

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body.encode()
        document: dict[str, Any] = {
            "id": "x", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.text}}
            ],
        }  # fmt: skip
        if self.usage is not None:
            document["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
            document["usage"]["total_tokens"] = sum(self.usage)
        return json.dumps(document).encode()


def label(name: str) -> Say:
    return Say(json.dumps({"label": name}))


def error(status: int, code: str | None = None, message: str = "no", param: str | None = None, **headers: str) -> Say:
    body = json.dumps({"error": {"message": message, "type": "error", "code": code, "param": param}})
    return Say(status=status, body=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Asked:
    """One request as it came in."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float

    @property
    def material(self) -> str:
        return self.body["messages"][-1]["content"]


class ChatServer:
    """`say(asked, number)` gives the response to the request of that number, from 0. Every request is kept."""

    def __init__(self, say):
        self.say = say
        self.asked: list[Asked] = []
        self.in_flight = self.peak = 0
        self._lock = threading.Lock()

    def __enter__(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                owner._answer(self)

            def log_message(self, *words):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request, client_address):
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        asked = Asked(body, {name.lower(): value for name, value in handler.headers.items()}, time.monotonic())
        with self._lock:
            number = len(self.asked)
            self.asked.append(asked)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
        said = self.say(asked, number)
        with self._lock:
            self.in_flight -= 1
        if said.drop:
            handler.close_connection = True
            handler.connection.close()
            return
        data = said.payload()
        handler.send_response(said.status)
        for name, value in {"content-type": "application/json", **said.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


def in_turn(*responses: Say):
    """The responses one after the other; the last one for ever."""
    return lambda _asked, number: responses[min(number, len(responses) - 1)]
