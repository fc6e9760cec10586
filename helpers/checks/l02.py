"""Checks of L02: an entry of config.yaml, a second model and an alias, and whose fault it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from helpers.lesson import Hint, check, expect, show
from helpers.settings import MINI, MODEL

# --- config.yaml -----------------------------------------------------------------------------


def _yaml(answer: Any) -> Any:
    """The learner's YAML as Python values.

    Raises:
        Hint: When it cannot be read, with the line at which reading stopped.
    """
    if not isinstance(answer, str):
        return answer
    import yaml

    try:
        return yaml.safe_load(answer)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1} of your text" if mark else ""
        raise Hint(
            f"This is not YAML: {getattr(error, 'problem', None) or 'it cannot be read'}{where}. "
            "Check the indentation, and that every colon is followed by a space."
        ) from None


def _mapping(value: Any, what: str, keys: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Hint(f"{what} must be a mapping with {keys}.", got=value, on=what)
    return value


def _served(api_base: Any) -> list[str]:
    """The models of an OpenAI-compatible server.

    Raises:
        Hint: When there is none at that address.
    """
    import httpx

    if not isinstance(api_base, str) or not api_base.startswith(("http://", "https://")):
        raise Hint("api_base must be an address: http://…, or {a variable} of this f-string.",
                   got=api_base, on="api_base")  # fmt: skip
    if not api_base.rstrip("/").endswith("/v1"):
        raise Hint(
            "api_base must end with /v1: LiteLLM appends only /chat/completions, and llama.cpp's "
            "OpenAI interface lies below /v1."
        )
    try:
        reply = httpx.get(f"{api_base.rstrip('/')}/models", timeout=5, trust_env=False)
        models = reply.raise_for_status().json()["data"]
        return [model["id"].removesuffix(":latest") for model in models]  # Ollama's way
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        raise Hint(
            "Nobody answers at your api_base as an OpenAI-compatible server. "
            "Is it the variable that the text names?"
        ) from None


def _deployment(value: Any, model_name: str) -> str:
    """Check an entry of model_list; returns its id."""
    entry = _mapping(value, "The entry", "model_name, litellm_params and model_info")
    if entry.get("model_name") != model_name:
        raise Hint(
            "model_name is what clients will ask for.",
            expected=model_name,
            got=entry.get("model_name"),
            on="model_name",
        )
    params = _mapping(entry.get("litellm_params"), "litellm_params", "model and api_base")
    model = str(params.get("model") or "")
    prefix, slash, rest = model.partition("/")
    if prefix in ("ollama", "ollama_chat"):
        raise Hint(f"{prefix}/ speaks Ollama's own interface. This backend speaks OpenAI's.")
    if not slash or prefix != "openai":
        raise Hint(
            "model is the provider's prefix, a slash, and the model's name at the backend. The "
            "prefix names the API that the backend speaks.",
            got=params.get("model"),
            on="model",
        )
    served = _served(params.get("api_base"))
    if rest not in served:
        raise Hint(
            f"The server at your api_base has {', '.join(served)}, and no {show(rest)}. "
            "Is it the right server, and the right name?"
        )
    if not params.get("api_key"):
        raise Hint(
            "api_key is missing. The backend wants none, but the client inside LiteLLM does not "
            "start without one: write none."
        )
    info = _mapping(entry.get("model_info"), "model_info", "an id")
    if not info.get("id"):
        raise Hint("Give the deployment an id under model_info, so that you can recognise it.")
    return str(info["id"])


@check("L02", "entry", look="Exercise 1: an entry of your own")
def entry(answer: Any) -> str:
    _deployment(_yaml(answer), MODEL)
    return "Your entry names a server that answers, and a model that it has."


@check("L02", "second", look="Exercise 2: a second model and an alias")
def second(answer: Any) -> str:
    config = _mapping(_yaml(answer), "Your text", "model_list and router_settings")
    models = config.get("model_list")
    if not isinstance(models, list) or len(models) != 1:
        raise Hint("model_list must be a list of one entry here: one '- ' and its keys below it.")
    id = _deployment(models[0], MINI)
    if id == "main":
        raise Hint("The id main belongs to the first deployment; this one needs another.")
    router = _mapping(config.get("router_settings"), "router_settings", "model_group_alias")
    alias = _mapping(router.get("model_group_alias"), "model_group_alias", "alias: model_name")
    if alias != {"tasks": MODEL}:
        raise Hint(
            "Clients will ask for tasks, and task-api-model shall answer: on the left what they "
            "ask for, on the right who answers, and nothing else.",
            got=dict(alias),
            on="model_group_alias",
        )
    return "Two deployments, three names."


# --- whose fault -----------------------------------------------------------------------------


def _status_error(status: int, message: str) -> Any:
    """The error that the OpenAI SDK raises for a status, with its own class."""
    import httpx
    import openai

    request = httpx.Request("POST", "http://proxy.test/v1/chat/completions")
    response = httpx.Response(
        status, request=request, json={"error": {"message": message, "code": str(status)}}
    )
    client = openai.OpenAI(api_key="none", base_url="http://proxy.test/v1", max_retries=0)
    return client._make_status_error_from_response(response)


@check("L02", "whose-fault", look="Break it on purpose")
def whose_fault(function: Callable[[Any], Any]) -> str:
    import httpx
    import openai

    request = httpx.Request("POST", "http://proxy.test/v1/chat/completions")
    cases = [
        (_status_error(400, "Invalid model name passed in model=gpt-9."), "request"),
        (_status_error(401, "Wrong API key."), "key"),
        (_status_error(500, "OpenAIException - Connection error."), "backend"),
        (openai.APIConnectionError(request=request), "proxy"),
        # Some that the lesson did not show, and that follow from the same four rules.
        (_status_error(403, "This key may not use this model."), "key"),
        (_status_error(404, "Not Found"), "request"),
        (_status_error(422, "temperature must be a number"), "request"),
        (_status_error(503, "Loading model"), "backend"),
        (_status_error(408, "Request Timeout"), "backend"),
        (_status_error(429, "Too many requests"), "backend"),
    ]
    for error, wanted in cases:
        expect(function, error, equals=wanted)
    return f"{len(cases)} errors, as many right verdicts."
