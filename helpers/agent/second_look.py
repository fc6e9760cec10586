"""What of a request a model has overlooked, and in which words it is asked for once more.

Plain functions, no model. What then comes back passes the same checks as everything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from helpers.agent.guardrails import OTHERS, OVER, POINTING, UNCLEAR
from helpers.agent.pointing import THE_DONE, Task, pointed_at, points_beside, wish
from helpers.asked import asking_parts, bare_name, meant, only_asks, only_courtesy, titled
from helpers.validators import ToolCall, asked_for_delete

Call = Mapping[str, Any]

_IT = re.compile(r"\b(?:it|its|that|this)\b", re.I)


def overlooked(
    text: str,
    calls: Sequence[Call],
    tasks: Iterable[Task],
    topic: int | None = None,
    pointed: set[int] | None = None,
) -> list[str]:
    """What of a request a model should be asked for once more: all, some parts, or nothing.

    Where the completed tasks are to be deleted, each that is left.

    Args:
        text: What the person said.
        calls: What the model called for it: ``arguments``, ``done``, and where it was refused the
            ``result`` that says why.
        tasks: The tasks there are.
        topic: The one that was spoken of last, see :func:`helpers.agent.pointing.topic`.
        pointed: Those that the request points at, see :func:`helpers.agent.pointing.pointed_at`.
    """
    tasks = list(tasks)
    asked = " ".join(asking_parts(text))
    deletes = not asked_for_delete([{"role": "user", "content": asked}])(
        ToolCall("delete_task", {})
    )
    if deletes and THE_DONE.search(asked) and (left := pointed_at(text, (), tasks)) is not None:
        return [f"delete task {number}" for number in sorted(left)]
    found = (
        _left(text, calls, tasks, pointed or set())
        if any(call["done"] for call in calls)
        else _all(text, calls, tasks, topic)
    )
    return [part for part in found if part]


def _all(text: str, calls: Sequence[Call], tasks: Sequence[Task], topic: int | None) -> list[str]:
    """Nothing was done. The whole request, where it can be understood without what was said before;
    with the number of its task, where it names one and the model took another or none, or says
    "it" and the model's call was refused; without a date that is none."""
    if only_asks(text) or only_courtesy(text):
        return []
    named = titled(text, tasks)
    if not named and topic and calls and _IT.search(text):
        return [f"task {topic}: {text}"]
    given = [call["arguments"] for call in calls if isinstance(call["arguments"], dict)]
    if len(named) == 1 and calls:
        number = min(named)
        for call in calls:
            if UNCLEAR in _why(call) or OVER in _why(call):
                return [f"task {number}: {text.replace(call['arguments']['due'], '')}"]
        if any(arguments.get("task_id") != number for arguments in given):
            return [f"task {number}: {text}"]
    points = POINTING.search(text) or points_beside(text)
    return [text] if named or not points else []


def _left(text: str, calls: Sequence[Call], tasks: Sequence[Task], pointed: set[int]) -> list[str]:
    """Something was done. What was done, for those of the tasks that the request points at with
    which it was not; or the parts of the request about a task of their own with which nothing was
    done."""
    done = [call for call in calls if call["done"]]
    if not all("task_id" in call["arguments"] for call in done):
        return []  # some of it is about no task that there was
    treated = {call["arguments"]["task_id"] for call in done}
    if treated < pointed:
        return [wish(done, pointed - treated)]
    about = [(part, meant(part, tasks)) for part in asking_parts(text)]
    if not any(treated & set(named) for _, named in about):
        return []
    tried = [call["arguments"] for call in calls if not call["done"] and OTHERS not in _why(call)]
    settled = treated | {given.get("task_id") for given in tried if isinstance(given, dict)}
    return [
        wish(done, named) if bare_name(part, tasks) else part
        for part, named in about
        if len(named) == 1 and named[0] not in settled
    ]


def _why(call: Call) -> str:
    """Why a call was refused."""
    return str((call.get("result") or {}).get("error"))
