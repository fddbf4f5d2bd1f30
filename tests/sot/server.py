"""An OpenAI-compatible endpoint on this machine, whose answers and failures a test chooses."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server does with a request."""

    text: str = ""
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Break the connection in the middle."""
    usage: bool = True
    finish_reason: str = "stop"


Answer = Callable[[dict[str, Any]], Reply]


class Server:
    """Counts what it was asked, and how many requests it had at a time."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.serve(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.requests.append(body)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            reply = self.answer(body)
            time.sleep(reply.delay)
            with contextlib.suppress(BrokenPipeError, ConnectionError):
                self._send(handler, body, reply)
        finally:
            with self._lock:
                self._now -= 1

    def _send(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], reply: Reply) -> None:
        if reply.status != 200:
            data = json.dumps({"error": {"message": f"status {reply.status}"}}).encode()
            self._head(handler, reply, len(data), "application/json")
            handler.wfile.write(data)
            return
        prompt = sum(len(m["content"].split()) for m in body["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": len(reply.text.split())}
        usage["total_tokens"] = sum(usage.values())
        if body.get("stream"):
            data = b"".join(self._chunks(reply, usage))
        else:
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
            whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
            whole |= {"choices": [choice], **({"usage": usage} if reply.usage else {})}
            data = json.dumps(whole).encode()
        kind = "text/event-stream" if body.get("stream") else "application/json"
        self._head(handler, reply, len(data), kind)
        handler.wfile.write(data[: len(data) // 2] if reply.cut else data)
        if reply.cut:
            handler.close_connection = True
            handler.wfile.flush()

    def _chunks(self, reply: Reply, usage: dict[str, int]) -> Iterator[bytes]:
        base = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        pieces = [reply.text[i : i + 5] for i in range(0, len(reply.text), 5)]
        for i, piece in enumerate([*pieces, ""]):
            reason = reply.finish_reason if i == len(pieces) else None
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": reason}
            yield f"data: {json.dumps({**base, 'choices': [choice]})}\n\n".encode()
        if reply.usage:
            yield f"data: {json.dumps({**base, 'choices': [], 'usage': usage})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    def _head(self, handler: BaseHTTPRequestHandler, reply: Reply, length: int, kind: str) -> None:
        handler.send_response(reply.status)
        handler.send_header("content-type", kind)
        handler.send_header("content-length", str(length))
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.end_headers()


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()
