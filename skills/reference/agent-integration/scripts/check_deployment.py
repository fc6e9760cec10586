"""Try an agent's service from outside: is it guarded, limited, observable?

    python scripts/check_deployment.py http://127.0.0.1:8070 --key-file key
    python scripts/check_deployment.py URL --key-file key --flood 300   # also the rate limit

Prints a line for each question; exit status 0 when all are answered well, 1 when one is not, 2 when
nobody answers. It reads, and changes nothing. Needs Python only.
"""

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

# Services on this machine must not be looked for through a web proxy.
OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def get(url, key=""):
    """Status, headers and text of an answer, whatever the status is."""
    request = urllib.request.Request(url)
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with OPEN(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read().decode("utf-8", "replace")


def problems(base, key, path="/tasks", flood=0):
    """Pairs of a question and what is wrong; an empty text where nothing is.

    Args:
        base: The service's address.
        key: Its key.
        path: Something that asks for the key and changes nothing.
        flood: Requests with which to try the rate limit; 0: not tried.
    """
    base = base.rstrip("/")
    status = get(f"{base}/health/live")[0]
    yield "does it live", "" if status == 200 else f"/health/live answers {status}"
    status, _, text = get(f"{base}/health/ready")
    yield "can it serve", "" if status == 200 else f"/health/ready answers {status}: {text[:100]}"
    for name, given in (("without a key", ""), ("with a wrong key", "wrong-" + "x" * 20)):
        status = get(base + path, given)[0]
        yield f"is it closed {name}", "" if status == 401 else f"{path} answers {status}"
    status = get(base + path, key)[0]
    yield "is it open with the key", "" if status == 200 else f"{path} answers {status}"
    status, _, text = get(f"{base}/metrics")
    counts = re.findall(r"^[a-z_]+(?:\{[^}]*\})? [0-9.e+-]+$", text, re.M)
    yield "does it count", "" if status == 200 and counts else f"/metrics answers {status}"
    told = key and key in text
    yield "do the counters keep the key to themselves", "the key is in /metrics" if told else ""
    status, _, text = get(f"{base}/openapi.json")
    try:
        described = status == 200 and "paths" in json.loads(text)
    except ValueError:
        described = False
    yield "does it describe itself", "" if described else f"/openapi.json answers {status}"
    status, headers, text = get(f"{base}/")
    outside = re.findall(r"""(?:src|href)=["']?((?:https?:)?//[^"'\s>]+)""", text)
    if status == 200 and "html" in headers.get("Content-Type", ""):
        yield "is its page whole", f"it loads {outside[0]}" if outside else ""
        policy = headers.get("Content-Security-Policy", "")
        yield "has its page a policy", "" if "default-src" in policy else "no content policy"
    if flood:
        yield "is there a limit", limit(base + path, key, flood)


def limit(url, key, flood):
    """What is wrong with the rate limit; an empty text when nothing is."""
    for _ in range(flood):
        status, headers, _ = get(url, key)
        if status == 429:
            break
    else:
        return f"{flood} requests in a row were all answered"
    later = headers.get("Retry-After", "")
    if not later.isdigit():
        return f"429 without whole seconds in Retry-After: {later!r}"
    time.sleep(min(int(later), 60))
    status = get(url, key)[0]
    return "" if status == 200 else f"after {later} s it still answers {status}"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", help="address of the service")
    parser.add_argument("--key-file", type=Path, required=True, help="file that holds its key")
    parser.add_argument("--path", default="/tasks", help="what to ask for with the key")
    parser.add_argument("--flood", type=int, default=0, help="requests to try the limit with")
    options = parser.parse_args(arguments)
    try:
        key = options.key_file.read_text(encoding="utf-8").strip()
        found = list(problems(options.url, key, options.path, options.flood))
    except (OSError, ValueError) as error:
        print(f"Nobody answers, or the key cannot be read: {error}")
        return 2
    for question, wrong in found:
        print(f"{'no:  ' if wrong else 'yes: '}{question}{f'; {wrong}' if wrong else ''}")
    return 1 if any(wrong for _, wrong in found) else 0


if __name__ == "__main__":
    sys.exit(main())
