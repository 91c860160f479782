import numpy as np
import pytest
from onnx import TensorProto, helper

from graphopt.errors import DataError, ModelError
from graphopt.runtime.evaluate import agreement, as_scores, evaluate, rank_of


def test_accuracy_is_exact(make_model, make_batches):
    got = evaluate(make_model(), make_batches(10, wrong=3), batch_size=4)
    assert (got.n, got.labels, got.classes) == (10, True, 3)
    assert got.top1 == pytest.approx(0.7) and got.top5 is None
    assert got.ci95 == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert got.predictions.tolist() == [0, 1, 2] * 3 + [0]
    assert got.correct.tolist() == [False] * 3 + [True] * 7
    assert got.images_per_second > 0 and got.non_finite == 0 and not got.synthetic


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
@pytest.mark.parametrize("fixed", ["n", 1, 4])
def test_batch_sizes_do_not_matter(make_model, make_batches, batch_size, fixed):
    got = evaluate(make_model(shape=(fixed, 3, 8, 8)), make_batches(10, wrong=3), batch_size=batch_size)
    assert got.n == 10 and got.top1 == pytest.approx(0.7)


def test_softmax_and_trailing_axes_do_not_matter(make_model, make_batches):
    plain = evaluate(make_model(), make_batches())
    assert evaluate(make_model(tail=("Softmax",)), make_batches()).top1 == plain.top1
    nhwc = evaluate(make_model(shape=("n", 8, 8, 3)), make_batches(shape=("n", 8, 8, 3)))
    assert nhwc.top1 == plain.top1
    for shape in ((4, 5, 1, 1), (4, 1, 1, 5), (4, 5, 1), (4, 1, 5)):
        assert as_scores(np.zeros(shape, np.float32), "m").shape == (4, 5)


def test_top5_needs_more_than_five_classes(make_model, make_batches):
    weights = np.concatenate([np.eye(3)] + [2 * np.eye(3)] * 2, axis=1)  # classes 3..8 come before 0..2
    got = evaluate(make_model(weights), make_batches(9))
    assert got.top1 == 0.0 and got.classes == 9
    assert got.top5 == pytest.approx(float((got.predictions >= 3).mean()))  # own class is third


def test_without_labels_there_is_agreement(make_model, make_batches):
    batches = make_batches(10, labels=False)
    before = evaluate(make_model(), batches)
    assert not before.labels and (before.top1, before.top5, before.ci95, before.correct) == (None,) * 4
    after = evaluate(make_model(np.eye(3)[:, [0, 2, 1]]), batches, reference=before)
    assert after.agreement == pytest.approx(0.4)  # class 0 stays: images 0, 3, 6, 9
    assert agreement(before, before) == 1.0
    with pytest.raises(ValueError, match="cannot be compared"):
        agreement(before, evaluate(make_model(), make_batches(4)))


def test_nan_is_wrong_and_counted(make_model, make_batches):
    nan = make_model(np.eye(3) * -1, tail=("Log",))  # the logarithm of negative scores
    got = evaluate(nan, make_batches(10))
    assert got.non_finite == 10 and got.top1 == 0.0
    assert (got.predictions == -1).all() and agreement(got, got) == 0.0


def test_minus_infinity_is_counted_but_still_ranks(make_model, make_batches):
    zero = make_model(np.diag([1.0, 1.0, 0.0]), tail=("Log",))
    got = evaluate(zero, make_batches(9))
    assert got.non_finite == 9 and got.top1 == pytest.approx(6 / 9)


def test_equal_scores_rank_as_argmax_does():
    scores = np.array([[1, 1, 1], [0, 2, 2], [3, 1, 2]], dtype=np.float32)
    assert rank_of(scores, np.array([0, 2, 2])).tolist() == [0, 1, 1]
    for label in range(3):
        first = rank_of(scores, np.full(3, label)) == 0
        np.testing.assert_array_equal(first, scores.argmax(1) == label)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5, 2), (4, 5, 7, 7)])
def test_what_is_no_classifier_is_an_error(shape):
    with pytest.raises(ModelError, match=r"not scores \[N, classes\]"):
        as_scores(np.zeros(shape, np.float32), "m.onnx")
    with pytest.raises(ModelError, match="int64"):
        as_scores(np.zeros((4, 5), np.int64), "m.onnx")


def test_labels_outside_the_classes_are_an_error(make_model, make_batches):
    with pytest.raises(DataError, match=r"label 2 .* outside the model's 2 classes"):
        evaluate(make_model(np.eye(3)[:, :2]), make_batches(3))


def test_an_output_that_loses_images_is_an_error(make_batches):
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["scores"], keepdims=0),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [0, 2])
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, None)],
        [axes],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    with pytest.raises(ModelError, match="3 rows of scores for a batch of 10 images"):
        evaluate(model, make_batches(10))


def test_progress_is_told(make_model, make_batches):
    seen = []

    class Watch:
        def track(self, items, description, total=None):
            for item in items:
                seen.append((description, total))
                yield item

        def log(self, message): ...

        def warn(self, message): ...

    evaluate(make_model(), make_batches(10), batch_size=4, progress=Watch())
    assert len(seen) == 3 == seen[0][1] and "10 images" in seen[0][0]
