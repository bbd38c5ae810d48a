"""Sparse kernels: products against float64, the packed format, and errors on damaged data."""

import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf

from toolkit.core.errors import UserError
from toolkit.ir import kernels, runtime


@pytest.fixture(scope="module", autouse=True)
def built() -> Path:
    return kernels.build()


def sparse(rng: np.random.Generator, rows: int, columns: int, zeros: float, block: int = 1) -> np.ndarray:
    weights = rng.normal(size=(rows, columns)).astype(np.float32)
    kept = rng.random((-(-rows // block), columns)) >= zeros
    return weights * kept.repeat(block, axis=0)[:rows]


def agree(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1e-9, np.abs(wanted[np.isfinite(wanted)]).max()))


SHAPES = [(1, 1, 1), (3, 5, 7), (129, 193, 33), (384, 384, 128), (130, 1000, 1), (66, 77, 4096), (255, 257, 100)]


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize(("rows", "columns", "tokens"), SHAPES)
def test_product_equals_float64_on_every_instruction_set_for_any_shape(
    rows: int, columns: int, tokens: int, pattern: kernels.Pattern
) -> None:
    rng = np.random.default_rng(rows)
    weights, bias = sparse(rng, rows, columns, 0.9, int(pattern[0])), rng.normal(size=rows).astype(np.float32)
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    blob = kernels.pack(weights, None, bias, pattern)
    wanted = x.astype(np.float64) @ weights.T.astype(np.float64) + bias
    for isa in kernels.instruction_sets():
        agree(kernels.Layer([blob], isa=isa)(x)[0], wanted)


@pytest.mark.parametrize("zeros", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_all_dense_and_all_zero_matrices_of_every_value_type_are_right(
    kind: str, pattern: kernels.Pattern, zeros: float
) -> None:
    rng = np.random.default_rng(0)
    weights = (100 * sparse(rng, 50, 300, zeros, int(pattern[0]))).clip(-127, 127).astype(kind)
    scales = rng.random(50).astype(np.float32)
    x = rng.normal(size=(9, 300)).astype(np.float32)
    wanted = x.astype(np.float64) @ weights.T.astype(np.float64) * scales
    if not wanted.any():
        assert not kernels.Layer([kernels.pack(weights, scales, pattern=pattern)])(x)[0].any()
        return
    for isa in kernels.instruction_sets():
        agree(kernels.Layer([kernels.pack(weights, scales, pattern=pattern)], isa=isa)(x)[0], wanted)


def test_float16_values_keep_signs_subnormals_and_infinities() -> None:
    values = np.array([[1.5, -2.0, 6e-8, -6e-8, 65504, 0.1]], dtype=np.float16)
    for isa in kernels.instruction_sets():
        layer = kernels.Layer([kernels.pack(values)], isa=isa)
        picked = layer(np.eye(6, dtype=np.float32))[0][:, 0]
        np.testing.assert_array_equal(picked, values[0].astype(np.float32))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("activation", "formula"), [("gelu_erf", gelu_erf), ("gelu_tanh", gelu_tanh)])
def test_gelu_equals_its_formula_over_its_whole_range(activation: kernels.Activation, formula: object) -> None:
    x = np.linspace(-12, 12, 5001, dtype=np.float32)[:, None]
    one = kernels.pack(np.ones((1, 1), dtype=np.float32))
    for isa in kernels.instruction_sets():
        got = kernels.Layer([one], activation=activation, isa=isa)(x)[0]
        np.testing.assert_allclose(got, formula(x.astype(np.float64)), atol=1e-6)  # type: ignore[operator]


def test_chain_equals_two_products_with_the_activation_between() -> None:
    rng = np.random.default_rng(3)
    first, second = sparse(rng, 301, 130, 0.8), sparse(rng, 130, 301, 0.8)
    bias = rng.normal(size=301).astype(np.float32)
    x = rng.normal(size=(77, 130)).astype(np.float32)
    wanted = gelu_erf(x.astype(np.float64) @ first.T + bias) @ second.T
    blobs = [kernels.pack(first, None, bias), kernels.pack(second)]
    for isa in kernels.instruction_sets():
        agree(kernels.Layer(blobs, chain=True, activation="gelu_erf", isa=isa)(x)[0], wanted)


def rounded(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """FakeQuantize with 256 levels."""
    step = (high - low) / 255
    return np.rint(((x - low) / step).clip(0, 255)) * step + low


def away_from_ties(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Inputs whose nearest level is beyond the doubt of float arithmetic."""
    steps = (x - low) / ((high - low) / 255)
    return np.where(np.abs(steps - np.floor(steps) - 0.5) < 0.01, np.float32(-99), x).astype(np.float32)


@pytest.mark.parametrize("kind", ["float32", "int8"])
@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize(("rows", "columns", "tokens"), SHAPES)
def test_rounded_activations_equal_those_of_fake_quantize_on_every_instruction_set(
    rows: int, columns: int, tokens: int, pattern: kernels.Pattern, kind: str
) -> None:
    rng = np.random.default_rng(columns)
    low, high = -1.7, 2.3  # some of the inputs lie outside
    weights = (60 * sparse(rng, rows, columns, 0.9, int(pattern[0]))).clip(-127, 127).astype(kind)
    scales, bias = rng.random(rows).astype(np.float32), rng.normal(size=rows).astype(np.float32)
    x = away_from_ties(rng.normal(size=(tokens, columns)).astype(np.float32), low, high)
    wanted = rounded(x.astype(np.float64), low, high) @ weights.T.astype(np.float64) * scales + bias
    blob = kernels.pack(weights, scales, bias, pattern)
    for isa in kernels.instruction_sets():
        agree(kernels.Layer([blob], ranges=[(low, high)], isa=isa)(x)[0], wanted)


def test_each_of_several_matrices_has_a_range_of_its_own_and_odd_values_too() -> None:
    rng = np.random.default_rng(10)
    matrices = [(9 * sparse(rng, rows, 100, 0.8, 4)).astype(np.int8) for rows in (64, 64, 20)]
    ranges = [(-1.0, 1.0), (-1.0, 1.0), (0.0, 3.0)]
    x = rng.normal(size=(70, 100)).astype(np.float32)
    for low, high in set(ranges):
        x = away_from_ties(x, low, high)
    x[3, 5], x[4, 6], x[69, 99] = np.inf, -np.inf, np.nan
    for isa in kernels.instruction_sets():
        outputs = kernels.Layer([kernels.pack(m, pattern="4x1") for m in matrices], ranges=ranges, isa=isa)(x)
        for got, matrix, range_ in zip(outputs, matrices, ranges, strict=True):
            wanted = rounded(x.astype(np.float64), *range_) @ matrix.T.astype(np.float64)
            assert np.isnan(got[69]).all()  # NaN is of no level; infinities are of the last ones
            agree(got[:69], wanted[:69])


def test_chain_rounds_what_lies_between_its_matrices() -> None:
    rng = np.random.default_rng(11)
    first, second = ((3 * sparse(rng, *shape, 0.8, 4)).astype(np.int8) for shape in ((256, 132), (132, 256)))
    x = rng.integers(0, 200, (77, 132)).astype(np.float32)
    ranges = [(0.0, 255.0), (-508.0, 512.0)]  # steps of 1 and 4: no hidden value (whole + 0.5, or 0) is a tie
    bias = np.full(256, 0.5, dtype=np.float32)
    hidden = gelu_erf(x.astype(np.float64) @ first.T + bias)
    wanted = rounded(hidden, *ranges[1]) @ second.T.astype(np.float64)
    blobs = [kernels.pack(first, None, bias, "4x1"), kernels.pack(second, pattern="4x1")]
    for isa in kernels.instruction_sets():
        agree(kernels.Layer(blobs, chain=True, activation="gelu_erf", ranges=ranges, isa=isa)(x)[0], wanted)


def test_a_range_without_width_is_refused() -> None:
    blob = kernels.pack(np.ones((4, 4), np.int8), pattern="4x1")
    for low, high in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(UserError, match="out of range"):
            kernels.Layer([blob], ranges=[(low, high)])


def test_matrices_side_by_side_give_each_its_own_output() -> None:
    rng = np.random.default_rng(4)
    matrices = [sparse(rng, rows, 96, 0.9) for rows in (96, 40, 3)]
    x = rng.normal(size=(50, 96)).astype(np.float32)
    outputs = kernels.Layer([kernels.pack(m) for m in matrices])(x)
    for got, matrix in zip(outputs, matrices, strict=True):
        agree(got, x.astype(np.float64) @ matrix.T)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_reach_the_same_outputs_as_in_a_dense_product(odd: float) -> None:
    rng = np.random.default_rng(5)
    weights = sparse(rng, 37, 70, 0.5)
    weights[5] = 1  # meets the odd value with a weight that is not zero
    x = rng.normal(size=(40, 70)).astype(np.float32)
    x[7, 11] = odd
    with np.errstate(invalid="ignore"):
        wanted = np.array([[np.dot(row, w) for w in weights.astype(np.float64)] for row in x.astype(np.float64)])
    for isa in kernels.instruction_sets():
        got = kernels.Layer([kernels.pack(weights)], isa=isa)(x)[0]
        np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("pattern", ["1x1", "4x1"])
@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_unpacking_gives_back_what_was_packed(kind: str, pattern: kernels.Pattern) -> None:
    rng = np.random.default_rng(6)
    weights = (50 * sparse(rng, 131, 517, 0.9, int(pattern[0]))).astype(kind)
    scales, biases = rng.random((2, 131)).astype(np.float32)
    blob = kernels.pack(weights, scales, biases, pattern)
    for got, wanted in zip(kernels.unpack(blob), (weights, scales, biases), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert kernels.describe(blob) | {"entries": 0} == {
        **{"rows": 131, "columns": 517, "pattern": pattern, "values": kind},
        **{"nonzeros": np.count_nonzero(weights), "entries": 0},
    }


def test_packed_90_percent_sparse_int8_takes_less_than_two_and_a_half_bytes_a_weight() -> None:
    weights = (100 * sparse(np.random.default_rng(7), 768, 768, 0.9)).astype(np.int8)
    assert kernels.pack(weights, np.ones(768)).size < 2.5 * np.count_nonzero(weights)


def test_an_unknown_instruction_set_is_refused_and_the_environment_chooses_one() -> None:
    with pytest.raises(UserError, match="out of range"):
        kernels.Layer([kernels.pack(np.ones((1, 1), np.float32))], isa="neon")
    script = "from toolkit.ir import kernels; print(kernels.isa())"
    for name in kernels.instruction_sets():
        environment = os.environ | {"PRUNEOFA_ISA": name}
        shown = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert shown.stdout.strip() == name


def test_one_layer_answers_many_threads_at_once_with_identical_results() -> None:
    rng = np.random.default_rng(9)
    layer = kernels.Layer([kernels.pack(sparse(rng, 200, 150, 0.9))])
    x = rng.normal(size=(65, 150)).astype(np.float32)
    wanted = layer(x)[0]
    wrong: list[int] = []

    def ask() -> None:
        wrong.extend(i for i in range(200) if not np.array_equal(layer(x)[0], wanted))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kernels.build_checks(tmp_path_factory.mktemp("checks"))


def test_sanitizers_find_nothing_in_random_products_and_damaged_blobs(checks: Path) -> None:
    result = subprocess.run([checks, "11", "40"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4000 damaged packed matrices: no memory errors" in result.stdout


def test_code_of_one_instruction_set_is_never_offered_to_the_linker_for_the_others(checks: Path) -> None:
    objects = sorted(checks.parent.rglob("kernel_*.o"))
    assert objects
    for path in objects:
        symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
        assert not [line for line in symbols if " W " in line]


def test_the_portable_kernels_compile_for_a_newer_baseline() -> None:
    """Some distributions' compilers start at x86-64-v2, which has byte shuffles."""
    command = ["c++", "-std=c++17", "-march=x86-64-v2", "-fsyntax-only", "native/kernel_scalar.cpp"]
    if platform.machine() != "x86_64":
        pytest.skip("not an x86 machine")
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3])


def test_built_libraries_can_be_read_by_other_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model server seldom runs as the user who built them."""

    def quick(*arguments: str) -> None:
        for name in (kernels.KERNELS, kernels.EXTENSION):
            if arguments[0] == "--build":
                (Path(arguments[1]) / name).touch()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels.library, "_cmake", quick)
    assert kernels.build().parent.stat().st_mode & 0o777 == 0o755


def test_without_a_compiler_the_build_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        kernels.build()
    assert kernels.extension() is None


def test_a_cache_that_cannot_be_written_is_named_and_no_home_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert kernels.missing_tool() is None
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", Path("~")):
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
        assert kernels.missing_tool() == f"write permission for {folder}/pruneofa/kernels"
        assert not kernels.available()
        with pytest.raises(kernels.KernelMissingError, match="write permission"):
            kernels.build()


def test_a_disk_without_room_for_the_kernels_leaves_them_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels.library, "_cmake", lambda *arguments: None)  # so there is nothing to copy
    with pytest.raises(kernels.KernelMissingError, match=r"cannot be built in .*: No such file"):
        kernels.build()


def test_damaged_libraries_are_named_with_the_command_that_builds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.folder().mkdir(parents=True)
    for name in (kernels.KERNELS, kernels.EXTENSION):
        (kernels.folder() / name).write_bytes(b"\x7fELF")
    for use in (kernels.isa, runtime.core):
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            use()
        assert caught.value.instead == f"rm -r {kernels.folder()} && pruneofa kernels build"


@pytest.mark.parametrize(("generator", "program"), [("", "make"), ("Ninja", "ninja")])
def test_the_program_that_cmake_runs_is_named_if_it_is_missing(
    generator: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setattr(kernels.library, "_cmake_program", lambda: "cmake")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CMAKE_GENERATOR", generator)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.missing_tool() == program
    (tmp_path / program).touch(mode=0o755)
    assert kernels.missing_tool() is None
