"""Which of this skill's claims hold with the packages installed here?

Usage: python scripts/check_claims.py [PATTERN ...] [--json]

Each claim has a probe, a function that tries it and returns its evidence. The patterns are
proxy, base_url, tools, fallback and mcp; all of them by default. Needs openai, openai-agents,
litellm and fastmcp; a missing package makes its claims fail. Nothing leaves the machine: where
a server is needed, a stub listens on the loopback. The exit status is 1 when a claim fails.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CLAIMS: list[tuple[str, str, object]] = []


def claim(pattern, sentence):
    """Register a probe with the claim that it tries."""

    def register(probe):
        CLAIMS.append((pattern, sentence, probe))
        return probe

    return register


@contextmanager
def stub(status=200):
    """A server that notes the paths it is asked for and answers every chat with "Here."."""
    seen = []
    message = {"role": "assistant", "content": "Here."}
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    body = answer if status == 200 else {"error": {"message": "broken", "type": "server_error"}}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append(self.path)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def same(got, wanted):
    """Stop the probe when they differ."""
    if got != wanted:
        raise AssertionError(f"found {got!r}, expected {wanted!r}")


# --- proxy -----------------------------------------------------------------------------------


@claim("proxy", "Started without `--host`, the LiteLLM proxy listens to the whole network.")
def default_host():
    from litellm.proxy.proxy_cli import run_server

    host = next(option.default for option in run_server.params if option.name == "host")
    same(host, "0.0.0.0")
    return "the option's default is 0.0.0.0"


@claim("proxy", "In `model: openai/NAME`, the prefix names the API that the backend speaks, and "
                "NAME is what the backend calls the model.")  # fmt: skip
def prefix():
    import litellm

    name, provider, *_ = litellm.get_llm_provider("openai/small", api_base="http://127.0.0.1:1/v1")
    same((provider, name), ("openai", "small"))
    return "openai/small is read as provider openai, model small"


# --- base_url --------------------------------------------------------------------------------


@claim("base_url", "An OpenAI client that is told nothing sends requests to api.openai.com.")
def default_address():
    import openai

    kept = {k: os.environ.pop(k) for k in ("OPENAI_BASE_URL",) if k in os.environ}
    try:
        host = openai.OpenAI(api_key="none").base_url.host
    finally:
        os.environ.update(kept)
    same(host, "api.openai.com")
    return "its base_url is on api.openai.com"


@claim("base_url", "An `Agent` takes no address and no client.")
def agent_parameters():
    from agents import Agent

    names = set(inspect.signature(Agent).parameters)
    same(names & {"base_url", "client", "openai_client", "api_key"}, set())
    return f"none of its {len(names)} parameters is one"


@claim("base_url", "A model object, `OpenAIChatCompletionsModel`, carries the client to the agent.")
async def model_object():
    from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner
    from openai import AsyncOpenAI

    with stub() as (url, seen):
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            model = OpenAIChatCompletionsModel(model="small", openai_client=client)
            agent = Agent(name="probe", model=model)
            run = await Runner.run(agent, "hello", run_config=RunConfig(tracing_disabled=True))
    same((run.final_output, seen), ("Here.", ["/v1/chat/completions"]))
    return "1 request, to /v1/chat/completions of that client"


# --- tools -----------------------------------------------------------------------------------


def add_task(title: str, priority: str = "medium", due: str = "") -> str:
    """Add a task."""
    return title


@claim("tools", "`function_tool` makes every parameter required, also one with a default; with "
                "`strict_mode=False` only those without.")  # fmt: skip
def required():
    from agents import function_tool

    strict = function_tool(add_task).params_json_schema["required"]
    loose = function_tool(add_task, strict_mode=False).params_json_schema["required"]
    same((len(strict), loose), (3, ["title"]))
    return "3 of 3 required, and 1 of 3"


@claim("tools", "The arguments of a tool call are a text that the model wrote, not an object.")
def arguments():
    from openai.types.chat.chat_completion_message_function_tool_call import Function

    made = Function(name="add_task", arguments="{not json")
    same((type(made.arguments), made.arguments), (str, "{not json"))
    return "the type is str, and '{not json' is accepted"


# --- fallback --------------------------------------------------------------------------------


@claim("fallback", "The OpenAI SDK repeats a failed request two times unless told otherwise.")
def sdk_retries():
    import openai

    same(openai.OpenAI(api_key="none").max_retries, 2)
    return "max_retries is 2"


@claim("fallback", "A LiteLLM router with `num_retries: 0` asks the next model when the first one "
                   "answers 500.")  # fmt: skip
async def router():
    import logging

    from litellm import Router

    logging.getLogger("LiteLLM Router").setLevel(logging.CRITICAL)
    logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
    with stub(status=500) as (first, seen), stub() as (second, also):
        deployment = {"api_key": "none", "max_retries": 0}
        models = [{"model_name": name, "litellm_params": {**deployment, "model": f"openai/{name}",
                                                          "api_base": url}}
                  for name, url in (("small", first), ("spare", second))]  # fmt: skip
        routed = Router(model_list=models, fallbacks=[{"small": ["spare"]}], num_retries=0)
        reply = await routed.acompletion(model="small", messages=[{"role": "user", "content": "x"}])
    same((reply.choices[0].message.content, len(seen), len(also)), ("Here.", 1, 1))
    return "1 request to the first, 1 to the second, and an answer"


# --- mcp -------------------------------------------------------------------------------------


@claim("mcp", "`@server.tool` makes the tool's schema from the function's signature.")
async def mcp_schema():
    from fastmcp import Client, FastMCP

    server = FastMCP("probe")
    server.tool(add_task)
    async with Client(server) as client:
        (tool,) = await client.list_tools()
    schema = tool.input_schema if hasattr(tool, "input_schema") else tool.inputSchema
    same((tool.name, sorted(schema["properties"]), schema["required"]),
         ("add_task", ["due", "priority", "title"], ["title"]))  # fmt: skip
    return "3 properties, 1 of them required"


@claim("mcp", "`Client(server)` calls a server's tools in the same process, without a network.")
async def mcp_in_memory():
    from fastmcp import Client, FastMCP

    server = FastMCP("probe")
    server.tool(add_task)
    async with Client(server) as client:
        result = await client.call_tool("add_task", {"title": "call mum"})
    same(result.data, "call mum")
    return "1 call, and its result"


# --- running them ----------------------------------------------------------------------------


def check(claims):
    """Run probes: a list of pattern, claim, holds, evidence."""
    found = []
    for pattern, sentence, probe in claims:
        try:
            evidence = asyncio.run(probe()) if inspect.iscoroutinefunction(probe) else probe()
            holds = True
        except Exception as problem:
            holds, evidence = False, f"{type(problem).__name__}: {problem}".splitlines()[0]
        found.append({"pattern": pattern, "claim": sentence, "holds": holds, "evidence": evidence})
    return found


def main(arguments):
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or it asks the internet
    os.environ.setdefault("FASTMCP_CHECK_FOR_UPDATES", "off")
    os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"  # the stubs are on this machine
    wanted = [word for word in arguments if not word.startswith("-")]
    known = {pattern for pattern, *_ in CLAIMS}
    if {"-h", "--help"} & set(arguments) or not set(wanted) <= known:
        print(__doc__.strip())
        return 0 if set(wanted) <= known else 2
    found = check([entry for entry in CLAIMS if not wanted or entry[0] in wanted])
    if "--json" in arguments:
        print(json.dumps(found, indent=1))
    else:
        for entry in found:
            mark = "holds" if entry["holds"] else "FAILS"
            print(f"{mark}  {entry['pattern']}: {entry['claim']}\n       {entry['evidence']}")
    return 0 if all(entry["holds"] for entry in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
