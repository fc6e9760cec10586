import contextlib
import io
import os
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from check_deployment import main

os.environ |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
KEY = "the-key-of-this-test"
PAGE = '<html lang="en"><a href="/docs">docs</a></html>'


@contextlib.contextmanager
def service(asks=True, ready=200, allowed=10**9, page=PAGE, policy="default-src 'none'"):
    left = [allowed]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            said, status, headers = "{}", 200, {}
            if self.path == "/health/ready":
                status = ready
            elif self.path == "/metrics":
                said = 'turns_total{state="answered"} 3.0\n'
            elif self.path == "/openapi.json":
                said = '{"paths": {}}'
            elif self.path == "/":
                said = page
                headers = {"Content-Type": "text/html", "Content-Security-Policy": policy}
            elif self.path == "/tasks":
                if asks and self.headers.get("Authorization") != f"Bearer {KEY}":
                    status = 401
                elif left[0] <= 0:
                    status, left[0] = 429, 1
                    headers = {"Retry-After": "0"}
                else:
                    left[0] -= 1
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class CheckDeployment(unittest.TestCase):
    def check(self, url, *more):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "key"
            file.write_text(KEY + "\n", encoding="utf-8")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                status = main([url, "--key-file", str(file), *more])
        return status, out.getvalue()

    def test_a_good_service_passes(self):
        with service() as url:
            status, said = self.check(url)
        self.assertEqual((status, "no: " in said), (0, False), said)

    def test_an_open_door_is_found(self):
        with service(asks=False) as url:
            status, said = self.check(url)
        self.assertEqual(status, 1)
        self.assertIn("no:  is it closed without a key", said)

    def test_a_service_that_cannot_serve_is_found(self):
        with service(ready=503) as url:
            self.assertIn("no:  can it serve", self.check(url)[1])

    def test_a_page_that_loads_from_elsewhere_is_found(self):
        page = '<html><script src="https://example.org/x.js"></script></html>'
        with service(page=page, policy="") as url:
            said = self.check(url)[1]
        self.assertIn("it loads https://example.org/x.js", said)
        self.assertIn("no:  has its page a policy", said)

    def test_the_limit_is_tried_only_when_asked(self):
        with service() as url:
            self.assertIn("5 requests in a row", self.check(url, "--flood", "5")[1])
        with service(allowed=3) as url:
            self.assertIn("yes: is there a limit", self.check(url, "--flood", "5")[1])

    def test_nobody_there(self):
        self.assertEqual(self.check("http://127.0.0.1:9")[0], 2)


if __name__ == "__main__":
    unittest.main()
