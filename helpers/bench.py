"""How fast the stack is on this machine: ``python3 -m helpers bench``.

Prints a table and writes ``work/bench.json``. Everything is measured on a pair of services
of its own, so that cold starts are cold and nobody else's requests are in the figures.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import settings
from .settings import MODEL

PAIRS = 200
REQUEST = "create a task to call the dentist tomorrow, high priority"


def tool_call() -> dict[str, Any]:
    """The request that is measured: one tool call among the course's five tools."""
    from .tasks import tool_schemas

    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": REQUEST}],
        "tools": tool_schemas(),
        "temperature": 0,
        "seed": 7,
        "max_tokens": 60,
        "cache_prompt": False,
    }


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile, least and number of some durations, in milliseconds."""
    ordered = sorted(seconds)
    return {
        "median_ms": round(statistics.median(ordered) * 1e3, 2),
        "p95_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))] * 1e3, 2),
        "min_ms": round(ordered[0] * 1e3, 2),
        "n": len(ordered),
    }


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used."""
    import psutil

    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    import psutil

    return round(psutil.Process(pid).memory_info().rss / 1e6, 1)


# ---- what is measured --------------------------------------------------------------------


def imports() -> dict[str, float]:
    """Median time of importing modules in a new Python, in milliseconds."""
    found = {}
    for module in ("helpers", "helpers.services", "helpers.clients"):
        code = (
            f"import time; t = time.perf_counter(); import {module};print(time.perf_counter() - t)"
        )
        runs = [
            float(
                subprocess.run(
                    [sys.executable, "-c", code],
                    capture_output=True,
                    text=True,
                    check=True,
                    cwd=settings.ROOT,
                ).stdout
            )
            for _ in range(5)
        ]
        found[module] = round(statistics.median(runs) * 1e3, 1)
    return found


def speed(client: Any) -> dict[str, Any]:
    """Prompt and decode rates as llama.cpp counts them, and the time to the first token."""
    long = " and ".join(f"task {n}: water the plants in room {n}" for n in range(16))
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": long}],
        "max_tokens": 128,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": False,
    }
    prompt, decode = [], []
    for _ in range(8):
        response = client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        timings = response.json()["timings"]
        prompt.append(timings["prompt_per_second"])
        decode.append(timings["predicted_per_second"])
    tokens = timings["prompt_n"]
    first = []
    for _ in range(20):
        started = time.perf_counter()
        with client.stream(
            "POST", "/v1/chat/completions", json={**tool_call(), "stream": True}
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data: {") and _says_something(line):
                    first.append(time.perf_counter() - started)
                    break
    return {
        "prompt_tokens_per_s": round(statistics.median(prompt)),
        "prompt_tokens": tokens,
        "decode_tokens_per_s": round(statistics.median(decode)),
        "first_token": summary(first) if first else None,
    }


def _says_something(line: str) -> bool:
    delta = (json.loads(line[6:]).get("choices") or [{}])[0].get("delta") or {}
    return bool(delta.get("content") or delta.get("tool_calls"))


def pairs(direct: Any, through: Any, backend_pid: int, proxy_pid: int, count: int) -> dict:
    """One tool call direct and through the proxy, in turns, and where the time goes.

    Args:
        direct: ``httpx.Client`` on the backend.
        through: ``httpx.Client`` on the proxy.
        backend_pid: The backend's process.
        proxy_pid: The proxy's process.
        count: How many pairs.
    """
    body = tool_call()
    for client in (direct, through) * 5:
        client.post("/v1/chat/completions", json=body).raise_for_status()
    times: dict[str, list[float]] = {"direct": [], "proxy": []}
    overhead, model = [], []
    before = cpu_seconds(proxy_pid), cpu_seconds(backend_pid)
    for number in range(count):
        both = [("direct", direct), ("proxy", through)]
        # Each goes first as often as the other.
        for name, client in both if number % 2 else both[::-1]:
            started = time.perf_counter()
            response = client.post("/v1/chat/completions", json=body)
            times[name].append(time.perf_counter() - started)
            response.raise_for_status()
            if name == "proxy":
                overhead.append(float(response.headers["x-litellm-overhead-duration-ms"]))
            else:
                timings = response.json()["timings"]
                model.append(timings["prompt_ms"] + timings["predicted_ms"])
    used = cpu_seconds(proxy_pid) - before[0], cpu_seconds(backend_pid) - before[1]
    one, other = summary(times["direct"]), summary(times["proxy"])
    difference = statistics.median(
        p - d for d, p in zip(times["direct"], times["proxy"], strict=True)
    )
    inside = statistics.median(overhead)
    computing = statistics.median(model)
    return {
        "direct": one,
        "proxy": other,
        "ratio_of_medians": round(other["median_ms"] / one["median_ms"], 2),
        "proxy_costs_ms": {
            "whole": round(difference * 1e3, 2),
            "litellm_router_and_sdk": round(inside, 2),
            "http_auth_and_logging": round(difference * 1e3 - inside, 2),
            "cpu_per_request": round(used[0] / count * 1e3, 2),
        },
        "backend_costs_ms": {
            "computing": round(computing, 2),
            "template_grammar_and_http": round(one["median_ms"] - computing, 2),
            "cpu_per_request": round(used[1] / (2 * count) * 1e3, 2),
        },
    }


def mcp(model_url: str, key: str, count: int) -> dict[str, Any]:
    """Calls of the MCP server in process, over stdio and over HTTP, and the model's part in them.

    A plain call (``list_tasks``), the model alone and a call that reasons (``handle_request``,
    which asks the model the same) are made in turns.

    Args:
        model_url: Where the server's tools and this process find the model.
        key: The key for it.
        count: How many of each.

    Returns:
        For each way: seconds from opening a client to its first answer (over stdio, this starts
        the server), the times of the calls, and the model's share of the call that reasons, the
        way to the model through the proxy included.
    """
    import asyncio

    from . import mcp_server
    from .tasks import TaskStore

    mcp_server.quiet()
    config = mcp_server.Config(model_url=f"{model_url.rstrip('/')}/v1", model_key=key, timeout=60)
    generate = mcp_server.generator(config)
    request, token = "finish task 1", "for-this-benchmark"
    more = {"TASKS_MODEL_URL": config.model_url, "TASKS_MODEL_KEY": key}

    async def measured(server: Any) -> dict[str, Any]:
        started = time.perf_counter()
        async with mcp_server.connect(server, token) as client:

            async def plain() -> None:
                await client.call_tool("list_tasks", {})

            async def model() -> None:
                await asyncio.to_thread(generate, [mcp_server.user(request)])

            async def reasons() -> None:
                asked = {"request": request}
                await client.call_tool("handle_request", asked, raise_on_error=False)

            await plain()
            result: dict[str, Any] = {"first_answer_s": round(time.perf_counter() - started, 2)}
            calls = {"list_tasks": plain, "model": model, "handle_request": reasons}
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(count + 1):
                for name, call in calls.items():
                    before = time.perf_counter()
                    await call()
                    times[name].append(time.perf_counter() - before)
        # The first of each opens connections.
        result |= {name: summary(seconds[1:]) for name, seconds in times.items()}
        share = result["model"]["median_ms"] / result["handle_request"]["median_ms"]
        return result | {"model_share": round(share, 3)}

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        db = Path(folder) / "tasks.sqlite"
        with TaskStore(db) as store:
            for title in ("water the plants", "pay the rent", "buy milk"):
                store.create(title)
            found["in process"] = asyncio.run(measured(mcp_server.build(config, store)))
            found["stdio"] = asyncio.run(measured(mcp_server.launch(db, **more)))
            with mcp_server.serve(db, token, log=Path(folder) / "mcp.log", **more) as web:
                found["HTTP"] = asyncio.run(measured(web.url))
    return found


def throughput(client: Any, concurrency: int, requests: int) -> float:
    """Requests per second with several at a time."""
    body = tool_call()

    def ask(_: int) -> None:
        client.post("/v1/chat/completions", json=body).raise_for_status()

    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, range(min(concurrency, 8))))
        started = time.perf_counter()
        list(pool.map(ask, range(requests)))
        return round(requests / (time.perf_counter() - started), 1)


def measure(pair_count: int = PAIRS, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure everything.

    Args:
        pair_count: Pairs of requests, direct and through the proxy.
        say: Called with a line for each step.

    Raises:
        CourseError: A service does not start.
    """
    import httpx

    from .backend import default_threads, serve
    from .clients import http_options
    from .proxy import course_config, serve_proxy, write_config
    from .settings import Settings

    result: dict[str, Any] = {
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "load_before": [round(n, 2) for n in os.getloadavg()]
            if hasattr(os, "getloadavg")
            else None,
        }
    }
    say("imports …")
    result["import_ms"] = imports()
    say("cold starts …")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)
        started = time.perf_counter()
        with serve(alias=MODEL, log=log / "backend.log") as backend:
            result["backend"] = {
                "start_s": round(time.perf_counter() - started, 2),
                "threads": default_threads(),
            }
            path = write_config(course_config(Settings(), backend.url), log / "config.yaml")
            started = time.perf_counter()
            with serve_proxy(path) as proxy:
                result["proxy"] = {"start_s": round(time.perf_counter() - started, 2)}
                key = {"Authorization": f"Bearer {proxy.key}"}
                with (
                    httpx.Client(base_url=backend.url, **http_options(120, True)) as direct,
                    httpx.Client(base_url=proxy.url, headers=key, **http_options(120)) as through,
                ):
                    say("tokens per second …")
                    result["speed"] = speed(direct)
                    say(f"{pair_count} pairs of one tool call …")
                    result["tool_call"] = pairs(direct, through, backend.pid, proxy.pid, pair_count)
                    say("many at a time …")
                    result["requests_per_s"] = {
                        name: {
                            str(n): throughput(client, n, max(n, pair_count // 2))
                            for n in (1, 8, 32)
                        }
                        for name, client in (("direct", direct), ("proxy", through))
                    }
                say("the MCP server …")
                result["mcp"] = mcp(proxy.url, proxy.key, max(3, pair_count // 8))
                result["backend"]["memory_mb"] = memory_mb(backend.pid)
                result["proxy"]["memory_mb"] = memory_mb(proxy.pid)
    say("faults …")
    from . import endurance

    result["resilience"] = endurance.measure(pair_count)
    result["memory_together_mb"] = round(
        result["backend"]["memory_mb"] + result["proxy"]["memory_mb"], 1
    )
    return result


# ---- showing it --------------------------------------------------------------------------


def rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The figures as lines of a table: what, how much."""
    call, speed = result["tool_call"], result["speed"]
    yield "import helpers", f"{result['import_ms']['helpers']} ms"
    yield "prompt", f"{speed['prompt_tokens_per_s']} tokens/s"
    yield "decode", f"{speed['decode_tokens_per_s']} tokens/s"
    if speed["first_token"]:
        yield "first token", f"{speed['first_token']['median_ms']} ms"
    for name in ("direct", "proxy"):
        figures = call[name]
        text = f"{figures['median_ms']} ms (95 % within {figures['p95_ms']} ms)"
        yield f"one tool call, {name}", text
    yield "proxy / direct", f"{call['ratio_of_medians']} (medians of {call['direct']['n']} pairs)"
    for part, cost in call["proxy_costs_ms"].items():
        yield f"  proxy: {part.replace('_', ' ')}", f"{cost} ms"
    for part, cost in call["backend_costs_ms"].items():
        yield f"  backend: {part.replace('_', ' ')}", f"{cost} ms"
    for name, by in result["requests_per_s"].items():
        text = ", ".join(f"{rate} at {n}" for n, rate in by.items())
        yield f"requests/s, {name}", text
    for way, figures in result["mcp"].items():
        yield f"MCP {way}, first answer", f"{figures['first_answer_s']} s"
        yield f"MCP {way}, list_tasks", f"{figures['list_tasks']['median_ms']} ms"
        text = f"{figures['handle_request']['median_ms']} ms"
        share = f"{figures['model_share']:.0%} of it the model and the proxy"
        yield f"MCP {way}, handle_request", f"{text}, {share}"
    for name in ("backend", "proxy"):
        part = result[name]
        yield name, f"{part['memory_mb']} MB, ready after {part['start_s']} s"
    yield "together", f"{result['memory_together_mb']} MB"
    resilience = result["resilience"]
    yield "resilient client, without faults", f"{resilience['overhead_ms']} ms more"
    slowest = max(resilience["after_a_kill_s"])
    yield "correct answer after a killed backend", f"{slowest} s (the slowest time)"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write ``work/bench.json``."""
    if argv and "--load" in argv:
        from . import load

        return load.main([word for word in argv if word != "--load"])
    parser = argparse.ArgumentParser(prog="python3 -m helpers bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="direct and proxied in turns")
    parser.add_argument(
        "--load", action="store_true", help="instead: many at once on the agent's REST surface"
    )
    parser.add_argument(
        "--storm", action="store_true", help="only L06's storm: faults, kills, what came of it"
    )
    parser.add_argument("--out", type=Path, default=settings.WORK / "bench.json")
    args = parser.parse_args(argv)
    if args.storm:
        return _storm()
    result = measure(max(1, args.pairs), lambda text: print(text, file=sys.stderr))
    for what, how_much in rows(result):
        print(f"{what:42} {how_much}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _storm() -> int:
    from . import endurance

    with tempfile.TemporaryDirectory() as folder:
        report = endurance.endure(Path(folder), say=lambda text: print(text, file=sys.stderr))
    for what, how_much in endurance.rows(report):
        print(f"{what:50} {how_much}")
    return 0
