"""Where things are, and the few settings that a learner can make through the environment.

Standard library only: this module is imported before anything is installed.

===================  ====================================================================
``BACKEND``          ``llama.cpp`` (default), ``ollama``, or the URL of a server that speaks
                     the OpenAI API
``BACKEND_KEY``      that server's key, where it asks for one; read only with such a URL
``OLLAMA_HOST``      where Ollama listens (default ``127.0.0.1:11434``)
``HOSTED``           ``1`` allows a hosted model; nothing else does
``HOSTED_MODEL``     which one (default ``gpt-4o-mini``)
``OPENAI_API_KEY``   its key, read only when ``HOSTED=1``
``COURSE_TODAY``     the date that the course takes for today (``2026-11-23``)
``COURSE_WORK``      another folder in place of ``work/``: state, logs, what lessons export;
                     services under another folder are another pair
``COURSE_SERVICES``  a JSON file that names a backend and a proxy which somebody else runs for
                     a whole class; nothing is started then
===================  ====================================================================
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = Path(os.environ.get("COURSE_WORK") or ROOT / "work").resolve()
STATE = WORK / "state"
LOGS = WORK / "logs"
MODEL_DIR = ROOT / "model"
NOTEBOOKS = ROOT / "notebooks"
SKILLS = ROOT / "skills"

MODEL = "task-api-model"
MINI = "task-api-model-mini"

HOSTED_MODEL = "gpt-4o-mini"
OLLAMA_HOST = "http://127.0.0.1:11434"

# What keeps libraries from asking the internet for updates and price lists. Commands, JupyterLab
# and tests run under it.
OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "FASTMCP_CHECK_FOR_UPDATES": "off",
    "HF_HUB_OFFLINE": "1",
}


class CourseError(Exception):
    """Something a learner can meet and mend.

    The text says what happened, why, and what to type next. The command line prints it
    without a traceback and exits with status 1.

    Args:
        what: What happened, one sentence.
        why: The reason, as far as it is known.
        todo: What to type or do next.
    """

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        self.what, self.why, self.todo = what, why, todo
        super().__init__("\n".join(part for part in (what, why, todo) if part))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: a learner needs the sentences only."""
        return str(self).splitlines()


def with_scheme(host: str) -> str:
    """A URL for what ``OLLAMA_HOST`` may hold: ``host``, ``host:port`` or a URL.

    ``0.0.0.0``, an address to listen on, becomes the loopback address to call.
    """
    url = host.strip().rstrip("/")
    if "://" not in url:
        if ":" not in url:
            url += ":11434"
        url = "http://" + url
    return url.replace("://0.0.0.0", "://127.0.0.1")


@dataclass(frozen=True)
class Settings:
    """What the environment asks for.

    Attributes:
        backend: ``"llama.cpp"``, ``"ollama"`` or the URL of an OpenAI-compatible server.
        backend_key: That server's key; empty for the other two, whatever the environment holds.
        hosted: A hosted model may be used; true only for ``HOSTED=1`` together with a key.
        hosted_model: Its name.
        hosted_key: Its key; empty unless ``HOSTED=1``, whatever the environment holds.
        ollama_host: URL of Ollama.
        today: The fixed date, or None for the real one.
    """

    backend: str = "llama.cpp"
    backend_key: str = field(default="", repr=False)
    hosted: bool = False
    hosted_model: str = HOSTED_MODEL
    hosted_key: str = field(default="", repr=False)
    ollama_host: str = OLLAMA_HOST
    today: datetime.date | None = None

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings.

        Raises:
            CourseError: For a ``BACKEND`` or ``COURSE_TODAY`` that means nothing.
        """
        backend = env.get("BACKEND", "").strip() or "llama.cpp"
        if backend.lower() in ("llama.cpp", "ollama"):
            backend = backend.lower()
        elif backend.startswith(("http://", "https://")):
            backend = backend.rstrip("/")
        else:
            raise CourseError(
                f"BACKEND={backend} is not a backend that this course knows.",
                "It takes llama.cpp, ollama, or the URL of an OpenAI-compatible server.",
                "Unset BACKEND for the built-in model, or set BACKEND=ollama.",
            )
        allowed = env.get("HOSTED", "").strip() == "1"
        key = env.get("OPENAI_API_KEY", "").strip() if allowed else ""
        return cls(
            backend=backend,
            backend_key=env.get("BACKEND_KEY", "").strip() if "://" in backend else "",
            # A key that happens to lie in the environment must never cost anybody money.
            hosted=bool(key),
            hosted_model=env.get("HOSTED_MODEL", "").strip() or HOSTED_MODEL,
            hosted_key=key,
            ollama_host=with_scheme(env.get("OLLAMA_HOST", "").strip() or OLLAMA_HOST),
            today=_course_today(env),
        )


def _course_today(env: Mapping[str, str]) -> datetime.date | None:
    text = env.get("COURSE_TODAY", "").strip()
    if not text:
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise CourseError(
            f"COURSE_TODAY={text} is not a date.",
            "It fixes the date that the course takes for today, written year-month-day.",
            "Unset COURSE_TODAY, or set it to a date like 2026-11-23.",
        ) from None


def today(env: Mapping[str, str] = os.environ) -> datetime.date:
    """The course's date: ``COURSE_TODAY`` where it is set, else the real one."""
    return _course_today(env) or datetime.date.today()


def scrubbed(env: Mapping[str, str]) -> dict[str, str]:
    """A copy of the environment for tests and kernels.

    Without keys and without what would redirect a client, so that a key that happens to lie
    there is never used; with :data:`OFFLINE`.
    """
    kept = {name: value for name, value in env.items() if not _KEYS.search(name.upper())}
    return {**kept, **OFFLINE}


_KEYS = re.compile(
    r"^(OPENAI|ANTHROPIC|AZURE|GEMINI|GOOGLE_API|COHERE|MISTRAL|GROQ|HF|HUGGING|LITELLM|LANGFUSE"
    r"|LANGSMITH)_|_API_KEY$|_API_BASE$|^HOSTED"
)
