import contextlib
import io
import json
import os
import socket
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from call_with_fallback import call_with_fallback, main

os.environ |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
FINISH = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
TOOLS = [{"type": "function", "function": {"name": "finish", "parameters": FINISH}}]


def call(name, arguments):
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
        ],
    }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    )


GOOD = call("finish", '{"id": 14}')


@contextlib.contextmanager
def server(status, body, hang=None):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            if hang:
                hang.wait(30)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}/v1"
    finally:
        if hang:
            hang.set()
        listening.shutdown()
        thread.join()
        listening.server_close()


class Fallback(unittest.TestCase):
    def ask(self, *urls, more=()):
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(TOOLS, file)
        self.addCleanup(os.unlink, file.name)
        models = [f"--model={n}={url}" for n, url in zip(("first", "second"), urls, strict=False)]
        with contextlib.redirect_stdout(out := io.StringIO()):
            status = main(["Finish task 14", *models, "--tools", file.name, *more])
        return status, json.loads(out.getvalue())

    def test_the_first_answers(self):
        with server(200, GOOD) as one, server(500, "") as two:
            status, result = self.ask(one, two)
        self.assertEqual((status, result["by"]), (0, "first"))
        self.assertEqual(result["model"], "m")  # the name in the answer, whoever was asked
        self.assertEqual(result["calls"], [["finish", '{"id": 14}']])

    def test_what_falls_back(self):
        useless = {
            (500, "{}"): "InternalServerError",
            (429, "{}"): "RateLimitError",
            (200, '{"cut'): "JSONDecodeError",
            (200, '{"choices": []}'): "not the answer",
            (200, call("stop", "{}")): "no tool stop",
            (200, call("finish", '{"id": "x"}')): "not of type",
            (200, call("finish", '{"id": 1, "by": 2}')): "Additional properties",
            (200, call("finish", '{"id"')): "not JSON",
        }
        for answer, why in useless.items():
            with self.subTest(why=why), server(*answer) as one, server(200, GOOD) as two:
                status, result = self.ask(one, two)
                self.assertEqual((status, result["by"]), (0, "second"))
                self.assertIn(why, result["attempts"][0]["why"])

    def test_a_closed_port(self):
        with socket.socket() as held, server(200, GOOD) as two:
            held.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
            status, result = self.ask(f"http://127.0.0.1:{held.getsockname()[1]}/v1", two)
        self.assertEqual((status, result["by"]), (0, "second"))
        self.assertEqual(result["attempts"][0]["why"], "APIConnectionError")

    def test_no_answer_in_time(self):
        with server(200, GOOD, threading.Event()) as one, server(200, GOOD) as two:
            status, result = self.ask(one, two, more=["--patience", "1"])
        self.assertEqual((status, result["by"]), (0, "second"))
        self.assertEqual(result["attempts"][0]["why"], "APITimeoutError")

    def test_nobody_is_asked_after_the_deadline(self):
        with server(200, GOOD, threading.Event()) as one, server(200, GOOD) as two:
            status, result = self.ask(one, two, more=["--deadline", "0.5"])
        self.assertEqual((status, result["by"], len(result["attempts"])), (1, None, 1))

    def test_nobody_gets_more_than_what_is_left(self):
        now, allowed = [0.0], []

        def hangs(messages, tools, seconds):
            allowed.append(seconds)
            now[0] += seconds
            raise httpx.ReadTimeout("no answer")

        models = {"first": hangs, "second": hangs, "third": hangs}
        reply, attempts = call_with_fallback(
            [], [], models, patience=2, deadline=3, clock=lambda: now[0]
        )
        self.assertEqual((reply, allowed), (None, [2, 1]))
        self.assertEqual([attempt["seconds"] for attempt in attempts], [2, 1])

    def test_what_must_be_told(self):
        for code, name in ((400, "BadRequestError"), (401, "AuthenticationError")):
            with server(code, "{}") as one, server(200, GOOD) as two:
                status, result = self.ask(one, two)
            self.assertEqual((status, result["error"]), (2, name))
            self.assertEqual([a["why"] for a in result["attempts"]], [name])

    def test_nobody(self):
        with server(503, "{}") as one, server(503, "{}") as two:
            status, result = self.ask(one, two)
        self.assertEqual((status, result["by"], len(result["attempts"])), (1, None, 2))

    def test_one_name_at_two_addresses(self):
        with server(503, "{}") as one, server(200, GOOD) as two:
            status, result = self.ask(one, more=[f"--model=first={two}"])
        self.assertEqual((status, result["by"]), (0, f"first={two}"))

    def test_models_that_mean_nothing(self):
        for pair in ("first", "=http://127.0.0.1:9/v1", "first=http://127.0.0.1:9/v1"):
            with contextlib.redirect_stderr(said := io.StringIO()), self.assertRaises(SystemExit):
                main(["Hi", f"--model={pair}", f"--model={pair}"])
            self.assertIn(f"--model {pair}", said.getvalue())


if __name__ == "__main__":
    unittest.main()
