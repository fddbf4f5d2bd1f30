"""bench.ops on the tiny shape: what it measures, and that it measures the operations it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import cuda_model, op_cases, ops
from bench.bars import OPS_BARS
from bench.devices import CPU_SIZES, CPU_TOKENS, CpuDevice
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
        assert ("fraction_of_ceiling" in result) == streams
        # Attention over bf16 may round its weights as the cache is rounded.
        rounded = result["op"] == "attention" and result["dtype"] == "bf16"
        bound = 2**-7 if rounded else 1e-5
        assert result["max_error"] < bound, result["name"]
    assert report["machine"]["ceiling"]["of"] == "read"
    assert report["machine"]["ceiling"]["gb_per_second"] > 0


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
    assert ops.sizes_wanted(None, None, CPU_SIZES) == [*((1, t) for t in CPU_TOKENS), (16, 1)]
    assert ops.sizes_wanted([4], None, CPU_SIZES) == [(4, t) for t in CPU_TOKENS]
    assert ops.sizes_wanted(None, [7], CPU_SIZES) == [(1, 7)]
    assert ops.sizes_wanted([1, 2], [3], CPU_SIZES) == [(1, 3), (2, 3)]
    assert ops.sizes_wanted(None, [7], [(16, 1), (16, 16)]) == [(16, 7)]


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
    judged = {
        (v["dtype"], v["pass"]) for v in ops.verdicts(OPS_BARS, results, "110m") if v["value"]
    }
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


def test_a_tree_is_attended_along_its_paths(tmp_path: Path) -> None:
    file, report = tmp_path / "tree.json", tmp_path / "ops.json"
    file.write_text("[-1, 0, 0, 1, -1]")
    case = ["--op", "attention", "--dtype", "f32", "--rows", "2", "--context", "40"]
    ops.main([*QUICK, *case, "--tree", str(file), "--json", str(report)])
    (result,) = json.loads(report.read_text())["results"]
    assert result["name"] == "attention 2x5@40 tree"
    assert result["max_error"] < 1e-5
    mask = op_cases.tree_mask(5, 7, [-1, 0, 0, 1, -1])
    assert ["".join(map(str, row)) for row in mask.int().tolist()] == [
        *("1110000", "1111000", "1110100", "1111010", "1100001")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[0]", r"parents\[0\] must be in -1..-1, got 0"),
        ("[-1, true]", r"parents\[1\] must be in -1..0, got True"),
        ("[]", "must be a list of 1..64 parents"),
        ("{", "--tree .*json"),
    ],
)
def test_wrong_trees_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match=message):
        ops.main([*QUICK, "--op", "attention", "--tree", str(file)])


def test_what_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report has what was measured before and after, at any time."""
    path, cases, seen = tmp_path / "ops.json", CpuDevice.cases, []

    def some(self: CpuDevice, op: str, *arguments: Any) -> Any:
        for case in cases(self, op, *arguments):
            yield case
            seen.append([r["op"] for r in json.loads(path.read_text())["results"]])
            if op == "rms_norm":
                raise RuntimeError("out of memory")

    monkeypatch.setattr(CpuDevice, "cases", some)
    quick = [*QUICK, "--dtype", "f32", "--rows", "1", "--tokens", "1"]
    asked = ["--op", "swiglu", "--op", "rms_norm", "--op", "linear"]
    with pytest.raises(SystemExit, match="1 operations could not be measured"):
        ops.main([*quick, *asked, "--json", str(path)])
    assert seen == [["swiglu"], ["swiglu", "rms_norm"], ["swiglu", "rms_norm", "linear"]]
    report = json.loads(path.read_text())
    assert [r["op"] for r in report["results"]] == seen[-1]
    assert report["failed"] == [{"op": "rms_norm", "dtype": "f32", "error": "out of memory"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("main", [ops.main, cuda_model.main])
def test_without_a_gpu_there_is_a_clear_refusal(
    main: Callable[[list[str]], None],
) -> None:
    arguments = [] if main is cuda_model.main else ["--device", "cuda"]
    with pytest.raises(SystemExit, match=r"device 'cuda': .* use device='cpu'"):
        main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--isa", "sse9"], "sse9"),
        (["--graph"], "--graph is about GPUs, got --device cpu"),
        (["--cold-l2"], "--cold-l2 is about GPUs"),
        (["--op", "ngram"], "--op ngram: --device cpu measures linear, .* choose one"),
        (["--dtype", "f16"], "--dtype f16: --device cpu measures bf16, f32"),
    ],
)
def test_what_the_cpu_does_not_have_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        ops.main([*QUICK, "--tokens", "1", *arguments])
