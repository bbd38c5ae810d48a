"""Reading an IR folder: what is refused before OpenVINO opens a file."""

import os

import pytest

from toolkit.core.errors import UserError
from toolkit.ir.runtime import needed_extension, read_ir


@pytest.mark.parametrize("read", [read_ir, needed_extension])
def test_weights_in_a_fifo_are_refused_without_opening_it(tmp_path, read):
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    os.mkfifo(tmp_path / "openvino_model.bin")
    with pytest.raises(UserError, match="not a regular file"):
        read(tmp_path)
