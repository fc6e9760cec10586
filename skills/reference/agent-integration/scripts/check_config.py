"""What is wrong with a LiteLLM proxy's configuration, before it is started.

Usage: python scripts/check_config.py config.yaml

Prints one finding a line and exits with status 1 if there is any. It reads the file only; it
starts nothing and asks nobody. Needs PyYAML, which LiteLLM brings along.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import yaml

TOOLS_AS_TEXT = ("ollama/",)
SLASH = "`model` needs a prefix that names the backend's API, such as openai/NAME."


def findings(config):
    """Sentences about a configuration; an empty list when there is nothing to say."""
    if not isinstance(config, dict) or not config.get("model_list"):
        return ["There is no model_list, so the proxy has no model."]
    found, names, ids = [], set(), []
    for number, entry in enumerate(config["model_list"], 1):
        name = entry.get("model_name") or f"entry {number}"
        names.add(name)
        found += [f"{name}: {text}" for text in _entry(entry)]
        ids.append((entry.get("model_info") or {}).get("id"))
    for twice in sorted({i for i in ids if i and ids.count(i) > 1}):
        found.append(f"The id {twice} is used twice; headers could not tell the two apart.")
    router = config.get("router_settings") or {}
    for alias, target in (router.get("model_group_alias") or {}).items():
        if isinstance(target, str) and target not in names:
            found.append(f"The alias {alias} leads to {target}, which no entry has.")
    for rule in router.get("fallbacks") or []:
        for source, targets in rule.items():
            missing = [n for n in [source, *targets] if n not in names and n != "*"]
            found += [f"A fallback names {n}, which no entry has." for n in missing]
    if "num_retries" not in router:
        found.append("router_settings.num_retries is not set: each failure is tried twice more.")
    return [*found, *_keys(config)]


def _entry(entry):
    params = entry.get("litellm_params") or {}
    model, base = str(params.get("model", "")), str(params.get("api_base", ""))
    if "/" not in model:
        yield SLASH
    if model.startswith(TOOLS_AS_TEXT):
        yield "the prefix ollama/ writes tools into the text; use ollama_chat/ or openai/."
    if model.startswith("openai/") and base.startswith("http"):
        if not base.rstrip("/").endswith("/v1"):
            yield "api_base of a server that speaks OpenAI's API usually ends in /v1."
    if model.startswith("openai/") and base and not params.get("api_key"):
        yield "api_key is missing; the OpenAI client insists on one, so write none."
    if not (entry.get("model_info") or {}).get("id"):
        yield "model_info.id is missing, so x-litellm-model-id cannot name this deployment."
    if not params.get("timeout"):
        yield "timeout is missing; the default is ten minutes."


def _keys(config):
    general = config.get("general_settings") or {}
    key = general.get("master_key")
    if not key:
        yield "general_settings.master_key is missing: the door has no lock."
    elif not str(key).startswith("os.environ/"):
        yield "master_key stands in the file; write os.environ/LITELLM_MASTER_KEY instead."
    if not general.get("custom_auth"):
        yield "without custom_auth or a database, a missing key is a 500 and a wrong one a 400."
    for entry in config["model_list"]:
        key = str((entry.get("litellm_params") or {}).get("api_key", ""))
        if re.match(r"sk-\w{8,}", key):
            yield f"{entry.get('model_name')}: an API key stands in the file."


def main(arguments):
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        config = yaml.safe_load(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as problem:
        print(f"{arguments[0]} cannot be read: {problem}")
        return 1
    found = list(findings(config))
    print("\n".join(found) or "Nothing found.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
