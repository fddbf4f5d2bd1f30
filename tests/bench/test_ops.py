"""bench.ops on the tiny shape: what it measures, and that it measures the operations it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import op_cases, ops
from cascade_engine.ops.cpu import CpuBackend
from tests.bench.conftest import assert_sane

QUICK = ["--shape", "tiny", "--rounds", "1", "--threads", "1"]
SIZES = [(1, 1), (3, 5)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("ops") / "ops.json"
    sizes = ["--rows", "1,3", "--tokens", "1,17", "--context", "9,100"]
    ops.main([*QUICK, *sizes, "--json", str(path)])
    return json.loads(path.read_text())


def test_a_report_covers_every_operation_dtype_and_size(report: dict[str, Any]) -> None:
    assert_sane(report)
    found = {(r["dtype"], r["name"]) for r in report["results"]}
    sizes = ["1x1", "1x17", "3x1", "3x17"]
    assert found == {
        (dtype, name)
        for dtype in ("bf16", "f32")
        for name in (
            *(f"{op} {size}" for op in ("linear", "rms_norm", "swiglu") for size in sizes),
            *(f"attention {size}@100" for size in sizes),
            *(f"attention {size}@9" for size in sizes if not size.endswith("17")),
        )
    }
    assert report["bars"] == []
    assert report["machine"]["threads"] == 1


def test_each_result_holds_its_figures(report: dict[str, Any]) -> None:
    for result in report["results"]:
        assert result["milliseconds"]["median"] > 0
        assert result["torch_over_ours"]["median"] > 0
        assert result["gflop_per_second"] > 0
        streams = result["op"] in ("linear", "attention")
        assert ("fraction_of_read_bandwidth" in result) == streams
        assert result["max_error"] < 1e-5, result["name"]


def test_bytes_and_operations_are_counted() -> None:
    backend = CpuBackend(1)
    (linear,) = op_cases.cases_of("linear", backend, "tiny", torch.bfloat16, [(3, 5)], [])
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 512 * 64
    assert (linear.read_bytes, linear.flops) == (2 * weights, 2 * weights * 15)
    (attention,) = op_cases.cases_of("attention", backend, "tiny", torch.float32, [(3, 2)], [20])
    layers = op_cases.CACHE_BYTES // (2 * 3 * 32 * 64 * 4)  # pages of 16 tokens: two for 20
    assert attention.read_bytes == layers * 3 * 2 * 20 * 64 * 4
    assert attention.flops == layers * 4 * 64 * 3 * (19 + 20)


@pytest.mark.parametrize("op", op_cases.OPS)
def test_an_error_is_seen(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = list(op_cases.cases_of(op, CpuBackend(1), "tiny", torch.float32, SIZES, [20]))
    assert [(case.rows, case.tokens) for case in cases] == SIZES
    fed = op_cases.Pass.result
    monkeypatch.setattr(op_cases.Pass, "result", lambda run, out: fed(run, out) * 1.01)
    for case in cases:
        assert 0.005 < case.error() < 0.02


def test_the_dense_cache_is_the_paged_one() -> None:
    layers, rows, heads, dim, context = 2, 3, 2, 4, 20
    paged = torch.randn(layers, 2, rows * 2, heads * dim * 16)
    keys, values = op_cases.dense_cache(paged, rows, heads, context)
    assert keys.shape == values.shape == (layers, rows, heads, context, dim)
    layer, row, head, position = 1, 2, 1, 18
    page = paged[layer, :, row * 2 + 1].view(2, heads, -1)
    assert torch.equal(keys[layer, row, head, position], page[0, head].view(dim, 16)[:, 2])
    assert torch.equal(values[layer, row, head, position], page[1, head].view(16, dim)[2])


def test_operations_without_rows_run_once_for_each_number_of_tokens() -> None:
    assert op_cases.by_count([(1, 1), (1, 16), (16, 1), (2, 3)]) == [(1, 1), (1, 16), (2, 3)]


def test_sizes_default_to_one_row_and_sixteen_of_one_token() -> None:
    assert ops.sizes_wanted(None, None) == [*((1, t) for t in ops.TOKENS), (16, 1)]
    assert ops.sizes_wanted([4], None) == [(4, t) for t in ops.TOKENS]
    assert ops.sizes_wanted(None, [7]) == [(1, 7)]
    assert ops.sizes_wanted([1, 2], [3]) == [(1, 3), (2, 3)]


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "ops.json"
    case = ["--op", "swiglu", "--tokens", "2", "--dtype", "f32", "--baseline", "none"]
    ops.main([*QUICK, *case, "--json", str(path)])
    (result,) = json.loads(path.read_text())["results"]
    assert "torch_over_ours" not in result
    assert "torch_milliseconds" not in result


def test_the_bars_are_judged_for_each_dtype() -> None:
    name = "attention 1x16@8192"
    results = [
        {"dtype": dtype, "name": name, "torch_over_ours": {"median": ratio}}
        for dtype, ratio in (("bf16", 3.0), ("f32", 1.0))
    ]
    judged = {(v["dtype"], v["pass"]) for v in ops.verdicts(results, "110m") if v["value"]}
    assert judged == {("bf16", True), ("f32", False)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "softmax"], "'softmax' (choose from"),
        (["--rows", "1,0"], "must be >= 1, got 0"),
        (["--tokens", "x"], "must be integers like 1,8,16, got 'x'"),
        (["--rounds", "0"], "--rounds must be >= 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ops.main(arguments)
    assert message in capsys.readouterr().err


def test_a_device_without_a_backend_is_refused() -> None:
    with pytest.raises(SystemExit, match=r"--device cuda: there is no GPU backend .* --device cpu"):
        ops.main([*QUICK, "--op", "swiglu", "--tokens", "1", "--device", "cuda"])
    with pytest.raises(SystemExit, match="sse9"):
        ops.main([*QUICK, "--op", "swiglu", "--tokens", "1", "--isa", "sse9"])
