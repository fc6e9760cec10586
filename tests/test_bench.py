"""The benchmark runs and its figures hold together; how fast a machine is, is not tested."""

from __future__ import annotations

import json

import pytest

from helpers import bench


def test_summary():
    figures = bench.summary([n / 1000 for n in range(1, 101)])
    assert figures == {"median_ms": 50.5, "p95_ms": 96.0, "min_ms": 1.0, "n": 100}
    assert bench.summary([0.002])["p95_ms"] == 2.0


@pytest.mark.slow
def test_bench_measures_everything(tmp_path, capsys):
    out = tmp_path / "work" / "bench.json"
    assert bench.main(["--pairs", "4", "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["tool_call"]["direct"]["n"] == result["tool_call"]["proxy"]["n"] == 4
    assert result["tool_call"]["ratio_of_medians"] > 0
    assert set(result["requests_per_s"]["proxy"]) == {"1", "8", "32"}
    assert result["memory_together_mb"] < 600
    assert result["import_ms"]["helpers"] < 50
    assert set(result["mcp"]) == {"in process", "stdio", "HTTP"}
    for figures in result["mcp"].values():
        assert figures["list_tasks"]["n"] == figures["handle_request"]["n"] == 3
        # Noise can make this more than 1: what is tested is what it is made of.
        parts = [figures[name]["median_ms"] for name in ("model", "handle_request")]
        assert figures["model_share"] == round(parts[0] / parts[1], 3) > 0
    resilience = result["resilience"]
    assert resilience["pairs"] == 4
    assert resilience["resilient_ms"] > 0
    assert len(resilience["after_a_kill_s"]) == 3  # each time, somebody answered correctly
    printed = capsys.readouterr().out
    assert "proxy / direct" in printed and "tokens/s" in printed
    assert "killed backend" in printed
    assert "MCP stdio, handle_request" in printed
