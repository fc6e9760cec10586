"""The proxy: LiteLLM in front of the backend, configured by a file that a learner can read.

``python -m helpers.proxy --config FILE`` serves LiteLLM's own application, as
``litellm --config FILE --host 127.0.0.1`` does, with three differences: the port is taken
before the slow imports rather than after them, the process ends when its starter does, and
the objects those imports made are kept out of garbage collection, which would otherwise
walk over half a million of them while answering.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .children import Child, Server, bound_socket, end_with_parent, report_to_parent
from .external import address, is_remote, openai_base
from .settings import LOGS, MODEL, WORK, CourseError, Settings

PORT = 4000
CONFIG = WORK / "proxy" / "config.yaml"
# Its imports take 10 to 60 s, depending on the machine and on what else runs there.
START_TIMEOUT = 240.0
# On every answer of a proxy that we started: tells ours from a stranger on the same port.
INSTANCE_HEADER = "x-course-instance"

# What the proxy may see of the environment is what it needs to run; keys and addresses of
# other services, which LiteLLM would find by their usual names, are not among it.
_KEEP = (
    "PATH PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX LD_LIBRARY_PATH DYLD_LIBRARY_PATH "
    "HOME USER LOGNAME USERPROFILE APPDATA LOCALAPPDATA PROGRAMDATA SYSTEMROOT SYSTEMDRIVE "
    "WINDIR COMSPEC PATHEXT TEMP TMP TMPDIR LANG LC_ALL LC_CTYPE TZ PYTHONUTF8 "
    "SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE"
).split()
_KEEP_REMOTE = "HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy".split()


def new_key() -> str:
    """A random key in the form that clients expect."""
    return "sk-" + secrets.token_urlsafe(24)


def child_env(
    key: str, settings: Settings | None = None, env: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The proxy's environment: what it needs to run, and the keys that these settings allow.

    Args:
        key: The proxy's master key.
        settings: Keys of a hosted model and of a backend of somebody else are passed on; the
            machine's web proxies too where one of them is not on this machine.
        env: The environment to take from.
    """
    kept = {name: env[name] for name in _KEEP if name in env}
    kept |= {
        "LITELLM_MASTER_KEY": key,
        # Without it, LiteLLM reads .env from the working directory.
        "LITELLM_MODE": "PRODUCTION",
        # Without it, LiteLLM downloads a table of prices when it starts.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "WARNING",
        "DISABLE_ADMIN_UI": "True",
        "NO_DOCS": "True",
        "NO_REDOC": "True",
        "HF_HUB_OFFLINE": "1",
        # llama.cpp closes the connection after a streamed answer without saying so; a request
        # that is just being written to it fails. So connections to it are not used again.
        "AIOHTTP_KEEPALIVE_TIMEOUT": "0",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PYTHONUTF8": "1",
    }
    if settings is not None:
        if settings.hosted:
            kept["COURSE_HOSTED_KEY"] = settings.hosted_key
        if settings.backend_key:
            kept["COURSE_BACKEND_KEY"] = settings.backend_key
        if settings.hosted or is_remote(address(settings)):
            kept |= {name: env[name] for name in _KEEP_REMOTE if name in env}
    return kept


def course_config(
    settings: Settings, backend_url: str, backend_model: str = MODEL
) -> dict[str, Any]:
    """The proxy's configuration, as LiteLLM reads it.

    Args:
        settings: Which backend, and whether a hosted model may be used.
        backend_url: Where the backend listens. For llama.cpp and other OpenAI-compatible
            servers this is the address above ``/v1``, unless it has a path of its own.
        backend_model: The model's name at that backend.
    """
    if settings.backend == "ollama":
        params: dict[str, Any] = {
            "model": f"ollama_chat/{backend_model}",
            "api_base": backend_url,
            # Ollama knows neither seeds nor llama.cpp's options under OpenAI's names.
            "drop_params": True,
        }
    else:
        params = {
            "model": f"openai/{backend_model}",
            "api_base": openai_base(backend_url),
            "api_key": "os.environ/COURSE_BACKEND_KEY" if settings.backend_key else "none",
            "use_chat_completions_api": True,
        }
        if settings.backend_key:
            params["additional_drop_params"] = ["cache_prompt"]
    models: list[dict[str, Any]] = [
        {
            "model_name": MODEL,
            "litellm_params": {**params, "timeout": 30, "stream_timeout": 15},
            "model_info": {"id": f"{MODEL}-local"},
        }
    ]
    router: dict[str, Any] = {"num_retries": 0, "disable_cooldowns": True}
    if settings.hosted:
        models.append(
            {
                "model_name": settings.hosted_model,
                "litellm_params": {
                    "model": f"openai/{settings.hosted_model}",
                    "api_key": "os.environ/COURSE_HOSTED_KEY",
                    "additional_drop_params": ["cache_prompt"],
                    "timeout": 60,
                    "stream_timeout": 30,
                },
                "model_info": {"id": f"{settings.hosted_model}-hosted"},
            }
        )
        router["fallbacks"] = [{MODEL: [settings.hosted_model]}]
    return {
        "model_list": models,
        "router_settings": router,
        "general_settings": {
            "master_key": "os.environ/LITELLM_MASTER_KEY",
            "custom_auth": "helpers.proxy.user_api_key_auth",
            "disable_model_info_refresh": True,
        },
    }


# A comment for every setting, so that the written file explains itself.
_COMMENTS = {
    "model_list": "Which models the proxy offers, and where each of them lives.",
    "model_name": "the name that clients ask for",
    "model": "how to reach it: a provider's prefix, then the model's name there",
    "api_base": "the backend's address",
    "api_key": "what the backend expects; os.environ/X means: from the variable X",
    "use_chat_completions_api": "also answer /v1/responses, through chat completions",
    "additional_drop_params": "llama.cpp's own options, which other servers may refuse",
    "drop_params": "leave out what this backend does not know",
    "timeout": "seconds until an answer must be there (LiteLLM's router waits 6000)",
    "stream_timeout": "seconds until the next piece of a streamed answer",
    "id": "comes back as the header x-litellm-model-id: who answered",
    "router_settings": "What happens when a backend fails.",
    "num_retries": "an error is shown at once, rather than after two more tries",
    "disable_cooldowns": "a backend that failed is asked again the next time",
    "fallbacks": "who answers instead",
    "general_settings": "The proxy itself.",
    "master_key": "the key that clients must send, from the environment",
    "custom_auth": "a function: 401 for a missing or wrong key (LiteLLM says 500 and 400)",
    "disable_model_info_refresh": "do not ask the backends every few minutes what they can",
}


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as YAML, with a comment beside each setting it knows."""
    import yaml

    lines = [
        "# The configuration of the course's LiteLLM proxy. It is written anew at every start:",
        "# copy it to try changes, and start a proxy of your own with the copy (lesson 2).",
    ]
    for line in yaml.safe_dump(dict(config), sort_keys=False, width=100).splitlines():
        name = line.strip().removeprefix("- ").partition(":")[0]
        comment = _COMMENTS.get(name)
        if comment and not line.startswith((" ", "-")):
            lines += ["", f"# {comment}", line]
        elif comment:
            lines.append(f"{line}  # {comment}")
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def write_config(config: Mapping[str, Any], path: Path = CONFIG) -> Path:
    """Write a configuration for people and for LiteLLM, replacing the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(config_text(config), encoding="utf-8")
    temporary.replace(path)
    return path


# ---- what LiteLLM calls for every request ------------------------------------------------


async def user_api_key_auth(request: Any, api_key: str) -> Any:
    """Let a request with the proxy's key pass; 401 for any other.

    LiteLLM alone answers a missing key with 500 and a wrong one, for want of a database to
    look it up in, with 400.
    """
    from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

    key = os.environ.get("LITELLM_MASTER_KEY", "")
    given = (api_key or "").removeprefix("Bearer ")
    if not key or not hmac.compare_digest(given.encode(), key.encode()):
        raise ProxyException(
            message="Wrong API key." if given else "No API key: send Authorization: Bearer KEY.",
            type="auth_error",
            param="Authorization",
            code=401,
        )
    return UserAPIKeyAuth(api_key=key, user_id="learner", user_role=LitellmUserRoles.PROXY_ADMIN)


# ---- a proxy of one's own ----------------------------------------------------------------


class Proxy(Server):
    """A running proxy. Use it in a ``with`` block, or call :meth:`stop`.

    Attributes:
        url: Its address, ``http://127.0.0.1:PORT``; the OpenAI API is below ``/v1``.
        key: The key that it asks for.
        pid: Its process.
    """

    def __init__(self, child: Child, url: str, key: str, instance: str) -> None:
        super().__init__(child, url, instance)
        self._key = key
        self.ready = False  # set by wait_ready, which a learner may run again

    @property
    def key(self) -> str:
        """The key that it asks for."""
        return self._key

    def __repr__(self) -> str:
        # A notebook prints what a cell ends with; ports and keys do not belong in outputs.
        return f"<Proxy {'running' if self.child.alive else 'stopped'}>"


def start_proxy(
    config_path: str | Path,
    port: int | None = None,
    key: str | None = None,
    *,
    settings: Settings | None = None,
    log: Path | None = None,
) -> Proxy:
    """Start a proxy without waiting for its imports (see :func:`wait_ready`).

    Args:
        config_path: LiteLLM's configuration file.
        port: The port to take; None for any free one.
        key: The key to ask for; None for a new random one.
        settings: Passed on to :func:`child_env`.
        log: Where its log goes (default ``work/logs/proxy-own.log``).

    Raises:
        CourseError: The file is missing or not valid, or the port is taken.
    """
    path = Path(config_path).resolve()
    if not path.is_file():
        raise CourseError(
            f"There is no configuration {path.name}.",
            "The proxy reads its models from that file.",
            "Write it first, or check the path.",
        )
    _check_yaml(path)
    key = key or new_key()
    instance = secrets.token_hex(8)
    args = ["--config", str(path), "--port", str(port or 0), "--instance", instance]
    log = log or LOGS / "proxy-own.log"
    child = Child("helpers.proxy", args, log, env=child_env(key, settings))
    event = child.event(30)
    if event is None or "url" not in event:
        child.stop()
        if event and "port" in event.get("error", ""):
            raise CourseError(
                f"Port {port} is taken.",
                "Another program on this machine listens there.",
                "Leave the port out, and a free one is used.",
            )
        raise _failed(child, event)
    return Proxy(child, event["url"], key, instance)


def _check_yaml(path: Path) -> None:
    """Find now what LiteLLM would only complain about after its imports.

    Raises:
        CourseError: The file is not YAML, or offers no models.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" near line {mark.line + 1}" if mark else ""
        raise CourseError(
            f"{path.name} is not valid YAML{where}.",
            str(getattr(error, "problem", None) or error).capitalize() + ".",
            "Check the indentation there: two spaces for each level, and no tabs.",
        ) from None
    models = content.get("model_list") if isinstance(content, dict) else None
    if not isinstance(models, list) or not models:
        raise CourseError(
            f"{path.name} offers no models.",
            "The proxy looks for a list under model_list.",
            "Give it at least one entry with model_name and litellm_params.",
        )


def wait_ready(proxy: Proxy, timeout: float = START_TIMEOUT) -> None:
    """Wait until a proxy answers.

    Args:
        proxy: From :func:`start_proxy`.
        timeout: Seconds to wait.

    Raises:
        CourseError: It ended instead, or the time is over; the proxy has been stopped.
    """
    if proxy.ready:
        return
    event = proxy.child.event(timeout)
    if event is None or not event.get("ready"):
        proxy.stop()
        raise _failed(proxy.child, event)
    proxy.ready = True


def serve_proxy(config_path: str | Path, port: int | None = None, key: str | None = None) -> Proxy:
    """Start a proxy of your own and wait until it answers (its imports take 10 to 60 s).

    Args:
        config_path: LiteLLM's configuration file.
        port: The port to take; None for any free one.
        key: The key to ask for; None for a new random one.

    Raises:
        CourseError: The file is missing, the port is taken, or LiteLLM did not start.
    """
    proxy = start_proxy(config_path, port, key)
    wait_ready(proxy)
    return proxy


def _failed(child: Child, event: Mapping[str, Any] | None) -> CourseError:
    log = child.log_tail(60)
    # The last line of a traceback, "some.module.SomeError: what happened", says the most.
    errors = re.findall(r"^(?:[\w.]+\.)?\w*(?:Error|Exception): (.+)$", log, re.MULTILINE)
    last = " ".join(line.strip() for line in log.splitlines()[-2:])
    detail = errors[-1] if errors else last or (event or {}).get("error") or "no message"
    return CourseError(
        "The proxy did not start.",
        f"LiteLLM ended with: {detail}",
        "Check the configuration file; the whole log is in work/logs/" + child.log.name,
    )


# ---- the child ---------------------------------------------------------------------------


def bind(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1.

    It listens from the start, so that nobody can take the port during the imports; requests
    that come early wait in its queue.

    Raises:
        OSError: The port is taken.
    """
    sock = bound_socket(port)
    sock.listen(128)
    return sock


def main(argv: list[str] | None = None) -> int:
    """Serve LiteLLM with one configuration until the starter ends."""
    parser = argparse.ArgumentParser(prog="python -m helpers.proxy", description=__doc__)
    parser.add_argument("--config", required=True, help="LiteLLM's configuration file")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--instance", default="")
    args = parser.parse_args(argv)

    send = report_to_parent()
    server: Any = None

    def end() -> None:
        if server is None:
            os._exit(0)
        server.should_exit = True

    end_with_parent(end)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        sock = bind(args.port)
    except OSError as error:
        send({"error": f"port {args.port} is taken: {error.strerror}"})
        return 1
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    send({"url": url, "pid": os.getpid()})

    import gc

    # A million objects that stay are made now; looking for garbage among them only costs.
    gc.disable()
    os.environ["CONFIG_FILE_PATH"] = str(Path(args.config).resolve())
    import uvicorn
    from litellm.proxy.proxy_server import app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            if self.should_exit:
                return
            gc.collect()
            gc.freeze()
            gc.enable()
            send({"ready": True, "url": url, "pid": os.getpid()})

    config = uvicorn.Config(
        app,
        loop="auto",
        http="auto",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        headers=[(INSTANCE_HEADER, args.instance)],
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[sock])
    if not server.started:
        send({"error": "the application did not start; its log says why"})
        return 1
    # Threads that LiteLLM leaves running would hold up an ordinary exit.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
