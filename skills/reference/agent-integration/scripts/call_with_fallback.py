"""Ask models in turn until one gives an answer that can be used, and say how that went.

Usage: python scripts/call_with_fallback.py REQUEST --model NAME=URL [--model NAME=URL ...]
           [--tools FILE] [--patience SECONDS] [--deadline SECONDS]

REQUEST is what a person says; URL an OpenAI-compatible API, up to and including /v1; FILE a JSON
list of tools. The key is taken from BACKEND_KEY ("none" if that is not set). The output is JSON:
"by" (who was asked and answered, or null), "model" (the name that the answer bears: behind a proxy
another may have answered), "calls" and "text", and "attempts", each with model, outcome, why and
seconds. The exit status is 0 when somebody answered, 1 when nobody did, and 2 when the request or
the key is at fault, which no other model can mend: then "error" and "says" tell which.

As a module: call_with_fallback(messages, tools, models) with models a dictionary from names to
functions ask(messages, tools, seconds) that return a chat completion or raise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time


class BadAnswer(ValueError):
    """An answer came, and nothing can be done with it."""


def must_fall_back(problem):
    """Whether another model may do better; False for a wrong key and a bad request."""
    import httpx
    import openai

    if isinstance(problem, openai.APIStatusError):
        return problem.status_code in (408, 429) or problem.status_code >= 500
    return isinstance(
        problem, (openai.APIConnectionError, httpx.TransportError, json.JSONDecodeError, BadAnswer)
    )


def problem_in(reply, tools):
    """Why a reply is of no use, in a sentence; empty when it can be used."""
    import jsonschema

    choices = getattr(reply, "choices", None)
    if not choices:
        return "this is not the answer of a model"
    choice = choices[0]
    if choice.finish_reason == "length":
        return "the answer was cut off"
    calls = choice.message.tool_calls or []
    if not calls and not (choice.message.content or "").strip():
        return "the answer is empty"
    schemas = {t["function"]["name"]: t["function"].get("parameters", {}) for t in tools}
    for call in calls:
        name = call.function.name
        if name not in schemas:
            return f"there is no tool {name}"
        try:
            arguments = json.loads(call.function.arguments or "{}")
            jsonschema.validate(arguments, {"additionalProperties": False, **schemas[name]})
        except ValueError:
            return f"the arguments of {name} are not JSON"
        except jsonschema.ValidationError as error:
            return f"{name}: {error.message}"
    return ""


def call_with_fallback(
    messages, tools, models, patience=10.0, deadline=30.0, check=problem_in, clock=time.monotonic
):
    """The first usable reply, or None, and the attempts.

    Raises what must not fall back, with the attempts as its attribute `attempts`.
    """
    began, attempts = clock(), []
    for name, ask in models.items():
        left = deadline - (clock() - began)
        if left <= 0:
            break
        started = clock()
        attempt = {"model": name, "outcome": "answered", "why": ""}
        attempts.append(attempt)
        try:
            reply = ask(messages, tools, min(patience, left))
            if why := check(reply, tools):
                raise BadAnswer(why)
            return reply, attempts
        except Exception as problem:
            why = str(problem) if isinstance(problem, BadAnswer) else type(problem).__name__
            attempt.update(outcome="failed", why=why)
            if not must_fall_back(problem):
                problem.attempts = attempts
                raise
        finally:
            attempt["seconds"] = round(clock() - started, 3)
    return None, attempts


def model_at(url, name, key):
    """A model behind an OpenAI-compatible API as a function; it never retries."""
    import openai

    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)

    def ask(messages, tools, seconds):
        more = {"tools": tools} if tools else {}
        return client.chat.completions.create(
            model=name, messages=messages, timeout=seconds, temperature=0, **more
        )

    return ask


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("request")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=URL")
    parser.add_argument("--tools", help="a JSON file with a list of tools")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds for one model")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for all of them")
    given = parser.parse_args(arguments)
    tools = []
    if given.tools:
        with open(given.tools, encoding="utf-8") as file:
            tools = json.load(file)
    key = os.environ.get("BACKEND_KEY", "none")
    models = {}
    for pair in given.model:
        name, _, url = pair.partition("=")
        if not name or "://" not in url:
            parser.error(f"--model {pair}: give a name and an address, NAME=http://HOST:PORT/v1")
        if pair in given.model[: len(models)]:
            parser.error(f"--model {pair} is there twice; whoever failed is not asked again")
        models[pair if name in models else name] = model_at(url, name, key)
    messages = [{"role": "user", "content": given.request}]
    try:
        reply, attempts = call_with_fallback(
            messages, tools, models, given.patience, given.deadline
        )
    except Exception as problem:
        told = {"by": None, "error": type(problem).__name__, "says": str(problem)}
        print(json.dumps(told | {"attempts": getattr(problem, "attempts", [])}, indent=1))
        return 2
    result = {"by": None, "attempts": attempts}
    if reply is not None:
        message = reply.choices[0].message
        calls = [[c.function.name, c.function.arguments] for c in message.tool_calls or []]
        result |= {"by": attempts[-1]["model"], "model": reply.model}
        result |= {"calls": calls, "text": message.content or ""}
    print(json.dumps(result, indent=1))
    return 0 if reply is not None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
