"""The native fake quantization against NNCF's own: outputs and gradients are equal, sums but for their order."""

import contextlib

import pytest
import torch
from nncf.torch.quantization import quantize_functions

from toolkit.quantization import fake_quantize
from toolkit.quantization.fake_quantize import FakeQuantizeLoader, fast_fake_quantization

INT8, UINT8, INT7, NARROW = (-128, 127, 256), (0, 255, 256), (-64, 63, 128), (-127, 127, 255)  # low, high, number


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def outcome(fast, x, low, range_, levels, gradient):
    """Output, and gradients of input, range and low end: of NNCF's functions, or of the extension."""
    x, range_ = x.clone().requires_grad_(), range_.clone().requires_grad_()
    low = None if low is None else low.clone().requires_grad_()
    least, most, number = levels
    with fast_fake_quantization() if fast else contextlib.nullcontext("") as problem:
        assert problem == ""
        assert isinstance(quantize_functions.QuantizedFunctionsCPU, fake_quantize._Functions) == fast
        if low is None:
            y = quantize_functions.symmetric_quantize(x, number, least, most, range_, 1e-16)
        else:
            y = quantize_functions.asymmetric_quantize(x, number, least, most, low, range_, 1e-16)
        y.backward(gradient)
    return y.detach(), x.grad, range_.grad, None if low is None else low.grad


ROWS = normal(6, 700)
CASES = {
    "weights, a range per row": (ROWS, None, ROWS.abs().amax(1, keepdim=True), INT8),
    "weights, 7 bits": (ROWS, None, ROWS.abs().amax(1, keepdim=True), INT7),
    "weights, many outside": (ROWS, None, 0.3 * ROWS.abs().amax(1, keepdim=True), NARROW),
    "weights, one range": (ROWS, None, torch.tensor([2.0]), NARROW),
    "activations": (normal(3, 41, 90), None, torch.tensor([2.0]), INT8),
    "activations, unsigned": (normal(3, 41, 90).abs(), None, torch.tensor([1.5]), UINT8),
    "activations, asymmetric": (normal(3, 41, 90) + 0.3, torch.tensor([-1.0]), torch.tensor([3.1]), UINT8),
    "transposed": (normal(3, 41, 90).transpose(1, 2), None, torch.tensor([2.0]), INT8),
    "ranges that the extension does not take": (ROWS, None, torch.full((1, 700), 1.5), INT8),
    "zeros": (torch.zeros(2, 5), None, torch.tensor([1.0]), INT8),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_nncfs(case):
    x, low, range_, levels = case
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    theirs, ours = (outcome(fast, x, low, range_, levels, gradient) for fast in (False, True))
    for their, our in zip(theirs[:2], ours[:2], strict=True):
        assert torch.equal(their, our)
    for their, our in zip(theirs[2:], ours[2:], strict=True):
        assert (their is None) == (our is None)
        assert their is None or torch.allclose(their, our, rtol=1e-5, atol=1e-4)


def test_other_types_are_left_to_nncf():
    x, range_ = normal(4, 30).bfloat16(), torch.tensor([2.0])
    theirs, ours = (outcome(fast, x, None, range_, INT8, torch.ones_like(x)) for fast in (False, True))
    assert all(torch.equal(their, our) for their, our in zip(theirs[:3], ours[:3], strict=True))


def test_a_nan_stays_one():
    x = torch.tensor([[0.5, float("nan")]])
    y, *_ = outcome(True, x, None, torch.tensor([1.0]), INT8, torch.ones_like(x))
    assert y.isnan().tolist() == [[False, True]]


def test_sums_do_not_depend_on_the_number_of_threads():
    x, low, range_, levels = normal(64, 5000), torch.tensor([-1.0]), torch.tensor([3.1]), UINT8
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(outcome(True, x, low, range_, levels, normal(64, 5000)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_without_a_compiler_nncf_computes_and_the_reason_is_given(monkeypatch):
    def fails():
        raise RuntimeError("Error building extension: no c++")

    before = quantize_functions.QuantizedFunctionsCPU
    monkeypatch.setattr(FakeQuantizeLoader, "load", fails)
    with fast_fake_quantization() as problem:
        assert problem == "Error building extension: no c++"
        assert quantize_functions.QuantizedFunctionsCPU is before
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), fast_fake_quantization():
        raise ZeroDivisionError
    assert quantize_functions.QuantizedFunctionsCPU is before, "put back after an error too"
