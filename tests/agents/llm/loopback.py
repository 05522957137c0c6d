"""A plain server on loopback, and what it says in OpenAI's protocol."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from agents.llm.provider import Message, Request


class LoopbackServer:
    """Answers POSTs by a function; everything it was sent is kept.

    Attributes:
        respond: takes the path and the JSON that was sent; gives a status and a body (a dict or
            a text), and may give headers and seconds to wait.
    """

    def __init__(self):
        self.received = []
        self.respond = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.received.append((self.path, dict(self.headers), sent))
                status, body, headers, seconds = (*server.respond(self.path, sent), {}, 0.0)[:4]
                time.sleep(seconds)
                payload = (body if isinstance(body, str) else json.dumps(body)).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(payload)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(payload)
                except (BrokenPipeError, ConnectionResetError):  # the client gave up waiting
                    pass

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def completion(content, model="served-model"):
    """The body of a chat completion."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": content},
            }
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200},
    }


def analyst_responder(analyst):
    """Answers chat completions by a provider: respond = analyst_responder(RuleAnalyst())."""

    def respond(path, sent):
        name = sent["response_format"]["json_schema"]["name"]
        role = {"NetworkNotes": "profiling", "Verdict": "master"}.get(name, "analysis")
        messages = tuple(Message(**message) for message in sent["messages"])
        reply = analyst.complete(Request(role, "", "", messages, name, {}))
        return 200, completion(reply.text)

    return respond
