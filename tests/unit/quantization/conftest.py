"""What the tests of quantization share."""

import pytest

from tests.helpers.quantization import Case


@pytest.fixture(scope="module")
def case(tiny_bert, tiny_task_files):
    return Case(tiny_bert, tiny_task_files)


@pytest.fixture(scope="module")
def default(case):
    """The quantized model of a default recipe: not to be changed."""
    return case.quantized()[0]
