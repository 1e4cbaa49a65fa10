"""Pictures for images, globs and videos; class names and their absence."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image

from lvis_tde.calibration.alpha import predict_for_alphas
from lvis_tde.calibration.settings import tde_predictors
from lvis_tde.engine import YacsRecipe
from lvis_tde.predictor import ClassInfo, TDEDemo, class_info, find_inputs, is_video
from lvis_tde.visualization.charts import GROUP_COLORS


@pytest.fixture
def demo(tiny_cfg, tiny_model, tiny_set):
    model = tiny_model()
    model.roi_heads.box_predictor.feature_mean.mean.fill_(1)
    classes = class_info(tiny_set["val"], 7)
    cfg = tiny_cfg("deconfound", "INPUT.MIN_SIZE_TEST", 96)
    return TDEDemo(model, YacsRecipe(cfg).prepare, classes, score_threshold=0.05, panel_size=160)


@pytest.fixture
def files(tiny_set):
    return [record["file_name"] for record in DatasetCatalog.get(tiny_set["val"])]


def test_pictures_and_charts(demo, files, tmp_path):
    written = demo.run([files[0], files[1], files[0]], tmp_path / "out", explain=True)
    assert all(path.is_file() for path in written)
    pictures = [path for path in written if "_why_" not in path.stem]
    assert len(pictures) == 3 and len({path.name for path in written}) == len(written) > 3
    picture = read_image(pictures[0], "RGB")
    assert picture.shape[1] > 2 * 160  # two panels
    assert picture.std() > 10


def test_the_detections_are_those_of_the_model(demo, files):
    image = read_image(files[0], "RGB")
    picture, shown = demo.compare(image)
    one = demo._input(image)
    assert one["image"].shape == (3, 96, 96) and (one["height"], one["width"]) == (64, 64)
    # Detectron2's models read BGR.
    assert one["image"][0].mean().item() == pytest.approx(image[:, :, 2].mean(), rel=0.02)
    off, on = demo.detect(image)
    outputs = predict_for_alphas(demo.model, [one], [0.0, demo.alpha])
    for found, shown_here in zip(outputs, (off, on)):
        scores = found[0]["instances"].scores.sort(descending=True).values
        torch.testing.assert_close(shown_here.scores, scores[: len(off)])
    assert len(off) == len(on) == shown == (outputs[0][0]["instances"].scores >= 0.05).sum() > 0


@pytest.mark.parametrize("alpha, top", [(0.1, 20), (3.0, 20), (3.0, 2)])
def test_both_sides_show_as_many_whatever_alpha_does_to_the_scores(demo, files, alpha, top):
    model = demo.model
    tde_predictors(model)[0].alpha = alpha
    other = TDEDemo(model, demo._input, demo.classes, score_threshold=0.05, top=top)
    image = read_image(files[0], "RGB")
    off, on = other.detect(image)
    _, shown = other.compare(image)
    assert len(off) == len(on) == shown == min(top, len(demo.detect(image)[0]))
    if top == 2:
        assert len(list(other.explain(image, 50, shown))) <= shown


def test_nothing_above_the_threshold(demo, files):
    demo.score_threshold = 1.0
    image = read_image(files[0], "RGB")
    assert demo.compare(image)[1] == 0 and not list(demo.explain(image))
    for options, name in ((dict(top=0), "top=0"), (dict(score_threshold=7), "score_threshold=7")):
        with pytest.raises(ValueError, match=name):
            TDEDemo(demo.model, demo._input, demo.classes, **options)


def test_the_chart_names_the_classes(demo, files):
    figures = list(demo.explain(read_image(files[0], "RGB"), count=2))
    assert len(figures) == 2
    crop, logits, scores_axes = figures[0].axes
    (x0, x1), (y1, y0) = crop.get_xlim(), crop.get_ylim()
    box = crop.patches[0].get_bbox()
    assert x0 <= box.x0 < box.x1 <= x1 and y0 <= box.y0 < box.y1 <= y1 and len(crop.images) == 1
    labels = [label.get_text() for label in logits.get_yticklabels()]
    names = [name.replace("_", " ") for name in demo.classes.names]
    assert labels[-1] == "background" and set(labels[:-1]) <= set(names)
    bars = scores_axes.patches
    colors = {tuple(np.round(bar.get_facecolor()[:3], 3)) for bar in bars}
    known = {tuple(int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)) for c in GROUP_COLORS.values()}
    assert len(colors & {tuple(np.round(color, 3)) for color in known}) > 0
    scores = [bar.get_width() for bar in bars]
    assert all(0 <= score <= 1 for score in scores)


def test_video(demo, tmp_path):
    source = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for value in (30, 120, 200):
        writer.write(np.full((48, 64, 3), value, np.uint8))
    writer.release()
    (written,) = demo.run([str(source)], tmp_path / "out")
    video = cv2.VideoCapture(str(written))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and video.get(cv2.CAP_PROP_FPS) == 5
    ok, frame = video.read()
    assert ok and frame.shape[1] > 2 * 160
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert demo.run([str(tmp_path / "broken.mp4")], tmp_path / "out") == []
    assert "broken.mp4" in demo.skipped[0][0] and "cannot read the video" in demo.skipped[0][1]


def test_a_video_that_is_not_finished_is_not_there(demo, tmp_path, monkeypatch):
    def frames(_):
        yield np.full((48, 64, 3), 90, np.uint8), 5
        raise KeyboardInterrupt

    monkeypatch.setattr("lvis_tde.predictor.frames", frames)
    with pytest.raises(KeyboardInterrupt):
        demo.run([str(tmp_path / "clip.mp4")], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_read_is_skipped_and_the_rest_is_drawn(demo, files, tmp_path, caplog):
    data = Path(files[0]).read_bytes()
    bad = {"cut.png": data[: len(data) // 2], "text.png": b"no picture", "empty.png": b""}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    paths = [*(str(tmp_path / name) for name in bad), files[1]]
    written = demo.run(paths, tmp_path / "out", explain=True)
    assert {Path(path).name for path, _ in demo.skipped} == set(bad)
    assert written and all(path.stem.startswith(Path(files[1]).stem) for path in written)
    assert set(written) == set((tmp_path / "out").iterdir()) and "Skipped" in caplog.text


def test_inputs(tmp_path):
    for name in ("b.jpg", "a.jpg", "odd[1].jpg", "clip.MP4"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    names = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "odd[1].jpg")]
    assert find_inputs([str(tmp_path / "*.jpg"), names[0]]) == names
    assert find_inputs([names[2]]) == [names[2]]
    assert find_inputs([str(tmp_path)]) == [
        names[0],
        names[1],
        str(tmp_path / "clip.MP4"),
        names[2],
    ]
    with pytest.raises(FileNotFoundError, match="folder.jpg has no pictures"):
        find_inputs([str(tmp_path / "folder.jpg")])
    with pytest.raises(FileNotFoundError, match="none"):
        find_inputs([str(tmp_path / "none*.png")])
    assert is_video(tmp_path / "clip.MP4") and not is_video(names[0])


def test_missing_metadata_says_what_to_do(tiny_set):
    with pytest.raises(ValueError, match="'never_registered' has no class names.*--test-data"):
        class_info("never_registered", 7)
    with pytest.raises(ValueError, match="7 class names, but the model has 80"):
        class_info(tiny_set["val"], 80)


def test_groups_of_the_builtin_lvis_sets():
    # Numbers of rare, common and frequent classes as LVIS publishes them.
    published = {"lvis_v1_val": (337, 461, 405), "lvis_v0.5_val": (454, 461, 315)}
    for name, numbers in published.items():
        info = class_info(name, sum(numbers))
        assert tuple(map(list(info.frequency).count, "rcf")) == numbers
    assert class_info("coco_2017_val", 80).frequency is None


def test_groups_from_counts():
    MetadataCatalog.get("counted_groups").set(
        thing_classes=["a", "b", "c"],
        class_image_count=[{"id": 1, "image_count": 10}, {"id": 2, "image_count": 100}]
        + [{"id": 3, "image_count": 101}],
    )
    assert class_info("counted_groups", 3) == ClassInfo(["a", "b", "c"], ["r", "c", "f"])
