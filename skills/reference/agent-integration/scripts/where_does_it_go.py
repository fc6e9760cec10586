"""Run a program and see whether it sends anything to the default address of the OpenAI SDKs.

Usage: python scripts/where_does_it_go.py -- python my_agent.py [ARGUMENTS]

The program runs with OPENAI_BASE_URL set to a recorder on this machine, and with a key that is
none. A program that gives its own backend's address to every client sends nothing there. What
arrives would have gone to a hosted API: each request is listed by path, with how many
characters it carried, and never with its content. The exit status is 0 when nothing arrived, 1
when something did, 2 when the program could not be run.

It sees what relies on the SDK's default address, nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def watch(command):
    """Run a command; the paths and sizes of what arrived, and its exit status."""
    arrived = []

    class Recorder(BaseHTTPRequestHandler):
        def do_POST(self):
            size = len(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            arrived.append((self.path, size))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    env = {**os.environ, "OPENAI_BASE_URL": address, "OPENAI_API_KEY": "not-a-real-key"}
    env |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    try:
        done = subprocess.run(command, env=env, check=False)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    return arrived, done.returncode


def main(arguments):
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    command = arguments[1:] if arguments[0] == "--" else arguments
    try:
        arrived, status = watch(command)
    except OSError as problem:
        print(f"{command[0]} cannot be run: {problem}")
        return 2
    print(f"The program ended with status {status}.")
    print(f"Requests to the default address: {len(arrived)}")
    for path, size in arrived:
        print(f"  {path}  {size} characters")
    return 1 if arrived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
