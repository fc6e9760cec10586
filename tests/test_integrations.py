"""The skill before and after: what counts as passed, and why what is spoilt does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_skill import contents, grow, slow_parts  # noqa: F401  (two of them are fixtures)

from helpers import integrations
from helpers.integrations import (
    FIRST,
    INTEGRATIONS,
    LAST,
    NO_CODE,
    Code,
    attempt,
    before_and_after,
    code_for,
    versions,
)
from helpers.skill import REFERENCE

BY_NAME = {one.name: one for one in INTEGRATIONS}
PATTERNS = "references/patterns.md"
SDK, PROXY = "references/openai-sdk.md", "references/litellm-proxy.md"


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, Path]:
    return versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture
def spoilt(both, tmp_path):
    """``spoilt(version, file, old, new)`` is a copy of the skill with one text exchanged."""

    def make(version: str, name: str, old: str, new: str) -> Path:
        skill = tmp_path / "spoilt"
        shutil.copytree(both[version], skill)
        source = (skill / name).read_text(encoding="utf-8")
        assert source.count(old) >= 1, "this text is not in the skill any more"
        (skill / name).write_text(source.replace(old, new), encoding="utf-8")
        return skill

    return make


# --- versions and their code -----------------------------------------------------------------


def test_the_last_version_is_the_reference(both):
    assert contents(both[LAST]) == contents(REFERENCE)


@pytest.mark.slow
def test_the_first_version_is_what_l00_writes(both, grow):  # noqa: F811
    grow("L00")
    assert contents(both[FIRST]) == contents(grow.home)


def test_both_versions_supply_code(both):
    for one in INTEGRATIONS:
        codes = {version: code_for(skill, one.places) for version, skill in both.items()}
        assert all(codes.values()), one.name
        for version, code in codes.items():
            every = "".join(contents(both[version]).values())
            assert all(block in every for block in code.blocks), "not word for word"
        assert (REFERENCE / one.places[0][0]).is_file()
        assert f"\n## {one.places[0][1]}\n" in (REFERENCE / one.places[0][0]).read_text("utf-8")


def test_the_first_place_counts_and_blocks_above_where_they_build(tmp_path):
    (tmp_path / "a.md").write_text(
        "# A\n\n## One\n\n```python\n## Two\none\n```\n\n## Two\n\n```console\nno\n```\n\n"
        "```python\ntwo\n```\n\n```yaml\nno: 1\n```\n\n```python\nthree\n```\n",
        encoding="utf-8",
    )
    wanted = ("two\n", "three\n")
    places = [("b.md", "Two"), ("a.md", "None"), ("a.md", "Two"), ("a.md", "One")]
    assert code_for(tmp_path, places) == Code("python", wanted)
    text = (tmp_path / "a.md").read_text(encoding="utf-8")
    text = text.replace("# A\n", "# A\n\nBlocks build on\none another.\n", 1)
    (tmp_path / "a.md").write_text(text, encoding="utf-8")
    assert code_for(tmp_path, places) == Code("python", ("## Two\none\n", *wanted))
    assert code_for(tmp_path, [("a.md", "None"), ("b.md", "Two")]) is None


def test_no_code_is_not_passed(spoilt):
    skill = spoilt(FIRST, PATTERNS, "```", "~~~")
    assert [attempt(one, skill) for one in INTEGRATIONS] == [NO_CODE] * 5


# --- the count -------------------------------------------------------------------------------


@pytest.mark.slow
def test_before_and_after():
    """What lesson L07 prints. Nothing was made to fail: see the next test for one of the two."""
    assert before_and_after() == {
        FIRST: {
            "LiteLLM proxy": "",
            "OpenAI SDK": "The client offered no tool, so no call came.",
            "Agents SDK": "",
            "Fallback": "It falls back on a wrong key as well.",
            "MCP server": "",
        },
        LAST: dict.fromkeys(BY_NAME, ""),
    }


def test_all_blocks_of_the_first_version_together_get_no_tool_call(both):
    """It is not the choice of the section that lets the first version fail."""
    source = (both[FIRST] / PATTERNS).read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in source.split("```python\n")[1:]]
    assert len(blocks) == 6
    why = BY_NAME["OpenAI SDK"].check(Code("python", tuple(blocks)), both[FIRST])
    assert why == "The client offered no tool, so no call came."


# --- what is spoilt fails, and says why --------------------------------------------------------

ELSEWHERE = "It asked an address that nobody gave it."
SPOILT = {
    "no tools through the proxy": (
        "LiteLLM proxy", LAST, PROXY, "    timeout: 30\n",
        "    additional_drop_params: [tools]\n", "Of 5 tools, 0 reached the backend as they were."),
    "a prefix for another API": (
        "LiteLLM proxy", LAST, PROXY, "model: openai/small", "model: ollama/small",
        "It ended with NotFoundError."),
    "a key of its own": (
        "LiteLLM proxy", FIRST, PATTERNS, "api_key: none ", "api_key: other ",
        "It ended with AuthenticationError."),
    "no address": (
        "OpenAI SDK", LAST, SDK, "kind(**BACKENDS[name],", "kind(", ELSEWHERE),
    "no tool": (
        "OpenAI SDK", LAST, SDK, '"tools": [tool], ', "",
        "The client offered no tool, so no call came."),
    "an answer that is thrown away": (
        "OpenAI SDK", LAST, SDK, "(c.function.name, c.function.arguments)", "1",
        "It ended with AssertionError."),
    "an agent with a name only": (
        "Agents SDK", LAST, SDK, "model=model, tools", 'model="small", tools', ELSEWHERE),
    "traces that leave": (
        "Agents SDK", FIRST, PATTERNS, "set_tracing_disabled(True)", "pass", ELSEWHERE),
    "no agent": (
        "Agents SDK", FIRST, PATTERNS, "result = await", "result = reply #",
        "It ended with AttributeError."),
    "one model": (
        "Fallback", LAST, "references/fallbacks.md", '("small", "spare")', '("small",)',
        "With the main model down, no other was asked."),
    "a fallback on everything": (
        "Fallback", LAST, "scripts/call_with_fallback.py", "if not must_fall_back(problem)",
        "if False", "It falls back on a wrong key as well."),
    "no fallbacks in the router": (
        "Fallback", FIRST, PATTERNS, "  fallbacks: [{small: [spare]}]\n", "",
        "With the main model down, no other was asked."),
    "a tool that fails": (
        "MCP server", FIRST, PATTERNS, 'return f"removed', 'return 1 / 0, f"removed',
        "It ended with ToolError."),
    "only a list": (
        "MCP server", FIRST, PATTERNS,
        'call_tool("remove_task", {"task_id": 14})\nassert result.data == "removed task 14"',
        "list_tools()", "No client got a result from a tool."),
    "no syntax": (
        "MCP server", LAST, "references/mcp-server.md", "assert good.", "assert good..",
        "It ended with SyntaxError."),
    "the end of the process": (
        "MCP server", LAST, "references/mcp-server.md", "import mcp_template\n",
        "import os; os._exit(0)\n", "It ended its process."),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt(what, spoilt):
    name, version, file, old, new, why = SPOILT[what]
    assert attempt(BY_NAME[name], spoilt(version, file, old, new)) == why


def test_what_hangs_is_ended(both, monkeypatch):
    monkeypatch.setattr(integrations, "TIMEOUT", 2.0)
    why = BY_NAME["MCP server"].check(Code("python", ("import time\ntime.sleep(60)",)), both[LAST])
    assert why == "It took too long."


def test_who_prints_no_answer_has_none(both):
    """Having asked is not enough; the answer's number must be in the program."""
    block = (
        "import os\nfrom openai import OpenAI\n"
        "tool = {'type': 'function', 'function': {'name': 'f', 'parameters':"
        " {'type': 'object', 'properties': {'x': {'type': 'string'}}, 'required': ['x']}}}\n"
        "OpenAI(base_url=os.environ['BACKEND_URL'], api_key=os.environ['BACKEND_KEY'])"
        ".chat.completions.create(model='m', tools=[tool],"
        " messages=[{'role': 'user', 'content': 'x'}])\n"
    )
    check = BY_NAME["OpenAI SDK"].check
    assert check(Code("python", (block,)), both[LAST]) == "The call did not reach the program."
    shows = block.rstrip().replace("OpenAI(base", "reply = OpenAI(base", 1)
    assert check(Code("python", (shows,)), both[LAST]) == ""
