import numpy as np
import pytest

from graphopt.errors import ModelError
from graphopt.runtime.compare import compare_models


def test_two_models_on_labelled_images(make_model, make_batches):
    swapped = make_model(np.eye(3)[:, [0, 2, 1]])
    got = compare_models(make_model(), swapped, make_batches(12, wrong=3), batch_size=5)
    assert got.a.top1 == pytest.approx(9 / 12) and got.b.agreement == got.agreement == pytest.approx(4 / 12)
    assert got.paired.n == 12
    assert got.paired.delta == pytest.approx(100 * (got.b.top1 - got.a.top1))
    assert got.outputs.n == 12 and got.outputs.max_abs > got.outputs.mean_abs > 0
    assert got.bytes == (len(make_model()), len(swapped)) and not got.random_inputs


def test_equal_models(make_model, make_batches, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(make_model())
    got = compare_models(path, make_model(shape=(4, 3, 8, 8)), make_batches(10))
    assert got.agreement == 1.0 and got.paired.delta == 0 and got.paired.mcnemar_p == 1
    assert got.outputs.max_abs == 0 and got.bytes[0] == path.stat().st_size


def test_without_labels_and_without_images(make_model, make_batches):
    got = compare_models(make_model(), make_model(), make_batches(10, labels=False))
    assert got.paired is None and got.agreement == 1.0
    offset = make_model(bias=np.full(3, 0.25))
    blind = compare_models(make_model(), offset, None)
    assert (blind.a, blind.b, blind.paired, blind.agreement) == (None,) * 4
    assert blind.random_inputs and blind.outputs.n == 4
    assert blind.outputs.max_abs == pytest.approx(0.25, abs=1e-5)


def test_non_finite_outputs_are_left_out(make_model, make_batches):
    nan = make_model(np.eye(3) * -1, tail=("Log",))
    got = compare_models(make_model(), nan, make_batches(10))
    assert got.outputs.non_finite == 10 == got.b.non_finite and got.outputs.max_abs == 0
    assert got.agreement == 0.0


def test_what_cannot_be_compared_is_an_error(make_model, make_batches):
    with pytest.raises(ModelError, match="takes float32") as caught:
        compare_models(make_model(), make_model(shape=("n", 8, 8, 3)), make_batches())
    assert "same for both" in caught.value.hint
    with pytest.raises(ModelError, match=r"shapes \[.*3\] and \[.*4\]"):
        compare_models(make_model(), make_model(np.ones((3, 4))), make_batches())
    with pytest.raises(ModelError, match="no model at"):
        compare_models(make_model(), "none.onnx", None)
