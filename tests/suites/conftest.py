"""What the suites of hostile files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from hostile import Done, Place, furnished, serve


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[..., Done]]:
    with serve() as run:
        yield run


@pytest.fixture
def place(tmp_path: Path, server: Callable[..., Done]) -> Place:
    return furnished(tmp_path, server)


@pytest.fixture
def proto(classifier_proto: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(classifier_proto)
    return twin
