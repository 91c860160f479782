"""Writing model files: byte for byte the same, all or nothing, weights apart when they are large."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphopt import Model, UsageError, load, save
from graphopt.ir.io import check_writable, stage
from graphopt.runtime.equivalence import compare_outputs
from graphopt.runtime.feeds import random_feeds

TEXT = """<ir_version: 8, opset_import: ["" : 17], producer_name: "someone", model_version: 7,
           metadata_props: ["key" : "value", "a" : "b"]>
    g (float[N,4] x) => (float[N,4] y) <float[4] w = {1.0, 2.0, 3.0, 4.0}> { a = Mul(x, w) y = Relu(a) }"""


def test_round_trip_is_stable(tmp_path, classifier):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    model = load(classifier)
    save(model, first)
    save(load(first), second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() == model.to_bytes()
    found = compare_outputs(classifier, first, random_feeds(classifier), rtol=0)
    assert found.equal and found.max_abs == 0


def test_what_a_file_says_besides_its_graph_is_kept():
    proto = onnx.load_from_string(Model.from_text(TEXT).to_bytes())
    assert {p.key: p.value for p in proto.metadata_props} == {"key": "value", "a": "b"}
    assert proto.model_version == 7
    assert proto.ir_version == 8
    assert proto.opset_import[0].version == 17


def test_nothing_is_left_behind(tmp_path, classifier):
    model = load(classifier)
    target = tmp_path / "out.onnx"
    save(model, target)
    save(model, target, external_above=100)
    save(model, target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_weights_apart(tmp_path, classifier):
    model = load(classifier)
    target = tmp_path / "out.onnx"
    save(model, target, external_above=100)
    beside = [p for p in tmp_path.iterdir() if p.suffix == ".data"]
    assert len(beside) == 1
    assert beside[0].name.startswith("out.")
    onnx.checker.check_model(str(target))
    assert load(target).to_bytes() == model.to_bytes()
    assert compare_outputs(classifier, target, random_feeds(classifier), rtol=0).max_abs == 0


def test_weights_apart_are_the_same_bytes_each_time_and_old_ones_go(tmp_path, classifier):
    model = load(classifier)
    target = tmp_path / "out.onnx"
    save(model, target, external_above=100)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    save(load(target), target, external_above=100)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with model.edit():
        weight = next(c for c in model.constants() if c.name == "w2")
        weight.values = weight.values * 2
    save(model, target, external_above=100)
    after = {p.name for p in tmp_path.iterdir()}
    assert len(after) == len(before)
    assert after != set(before)
    assert np.array_equal(next(c for c in load(target).constants() if c.name == "w2").values, weight.values)


def test_saving_over_the_file_that_the_weights_are_mapped_from(tmp_path, classifier):
    target = tmp_path / "out.onnx"
    save(load(classifier), target, external_above=100)
    model = load(target)
    save(model, target)
    assert load(target).to_bytes() == load(classifier).to_bytes()


def test_a_stage_that_is_not_committed_leaves_nothing(tmp_path, classifier):
    target = tmp_path / "out.onnx"
    target.write_text("old")
    for above in (10, 10**9):
        with stage(load(classifier), target, external_above=above) as staged:
            assert staged.size() > 0
            assert target.read_text() == "old"
        with pytest.raises(RuntimeError), stage(load(classifier), target, external_above=above):
            raise RuntimeError
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


@pytest.mark.parametrize("above", [10, 10**9])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path, classifier, monkeypatch, above):
    from graphopt import atomic

    target = tmp_path / "out.onnx"
    target.write_text("old")

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "replace", fail)
    with pytest.raises(UsageError, match="No space left"):
        save(load(classifier), target, external_above=above)
    assert target.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_places_that_cannot_be_written(tmp_path, classifier):
    model = load(classifier)
    with pytest.raises(UsageError):
        save(model, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(UsageError, match="does not exist"):
        check_writable(tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(UsageError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UsageError, match="overwrite the input"):
        check_writable(classifier, source=classifier)
    (tmp_path / "link.onnx").symlink_to(classifier)
    with pytest.raises(UsageError, match="overwrite the input"):
        check_writable(tmp_path / "link.onnx", source=classifier)
    check_writable(tmp_path / "new.onnx", source=classifier)


def test_the_file_has_the_usual_permissions(tmp_path, classifier):
    target = tmp_path / "out.onnx"
    save(load(classifier), target)
    (tmp_path / "plain").write_text("")
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_data_of_other_models_stays(tmp_path, classifier):
    """Only what was written for the same target is ours to remove."""
    model = load(classifier)
    for name in ("out.onnx", "out.ort", "out.int8.onnx"):
        save(model, tmp_path / name, external_above=100)
    others = ["out.0123456789abcdef.bin", "out.data", "out.onnx.0123.data", "x.out.onnx.0123456789abcdef.data"]
    for name in others:
        (tmp_path / name).write_text("a user's own")
    save(model, tmp_path / "out.onnx")
    assert all((tmp_path / name).exists() for name in others)
    assert not list(tmp_path.glob("out.onnx.????????????????.data"))
    for name in ("out.ort", "out.int8.onnx"):
        assert load(tmp_path / name).to_bytes() == model.to_bytes()


def test_an_error_after_the_commit_leaves_the_new_model_whole(tmp_path, classifier):
    target = tmp_path / "out.onnx"
    model = load(classifier)
    with pytest.raises(RuntimeError), stage(model, target, external_above=100) as staged:
        staged.commit()
        raise RuntimeError
    assert load(target).to_bytes() == model.to_bytes()


def test_old_data_that_cannot_be_removed_is_no_error(tmp_path, classifier):
    target = tmp_path / "out.onnx"
    model = load(classifier)
    (tmp_path / "out.onnx.0123456789abcdef.data").mkdir()  # unlink refuses a folder
    save(model, target, external_above=100)
    assert load(target).to_bytes() == model.to_bytes()


def test_a_failed_flush_after_the_move_leaves_the_new_model_whole(tmp_path, classifier, monkeypatch):
    from graphopt import atomic

    target = tmp_path / "out.onnx"
    model = load(classifier)
    real = atomic.flush_to_disk

    def flush(path):
        if path == tmp_path and target.exists():
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(atomic, "flush_to_disk", flush)
    with pytest.raises(UsageError, match="Input/output error"):
        save(model, target, external_above=100)
    assert load(target).to_bytes() == model.to_bytes()
