"""Exported models against the model they come from."""

import dataclasses
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from heads_util import TDE_NAMES, build, predictors, zoo_config
from PIL import Image
from torch import nn

from lvis_tde import add_tde_config
from lvis_tde.engine import YacsRecipe
from lvis_tde.export import (
    NOTES,
    export_onnx,
    largest_difference,
    onnx_difference,
    run_export,
    run_image_export,
    trace_model,
)
from lvis_tde.export.common import about, difference, exported_at
from lvis_tde.export.traced import TracedModel
from lvis_tde.modeling import ImageClassifier, TDEImagePredictor

SIZES = [(64, 96), (80, 64), (128, 112)]


def images():
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(3, *size, generator=generator) * 255 for size in SIZES]


def with_means(model):
    for predictor in predictors(model):
        predictor.feature_mean.mean.uniform_(0, 1, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize(
    "name",
    [
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
        "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    ],
)
def test_traced_equals_eager_for_every_size(name, tmp_path):
    cfg = zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    model = with_means(build(cfg)).train()
    traced = trace_model(model, images()[0], alpha=2.0)
    assert model.training and predictors(model)[0].alpha == 1.5
    assert largest_difference(model, traced, images(), alpha=2.0) < 1e-4
    # Alpha is a constant of the graph: the model at another one gives something else.
    assert largest_difference(model, traced, images(), alpha=0.0) > 1e-3
    traced.module.save(str(tmp_path / "model.ts"))
    raw = torch.jit.load(str(tmp_path / "model.ts"))(images()[1])
    found = dict(zip(traced.outputs, raw))
    assert found["image_size"].tolist() == list(SIZES[1])
    assert len(found["scores"]) == len(found["pred_boxes"]) == len(found["pred_masks"]) > 0
    assert torch.equal(traced(images()[1]).scores, found["scores"])


@pytest.mark.parametrize("norm, num_heads", [("deconfound", 2), ("capsule", 1), ("none", 2)])
@pytest.mark.parametrize("background_exempt", [True, False])
def test_onnx_equals_the_predictor(norm, num_heads, background_exempt, tiny_model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    model = with_means(
        tiny_model(
            "deconfound", "MODEL.TDE.NORM", norm, "MODEL.TDE.NUM_HEADS", num_heads,
            "MODEL.TDE.BACKGROUND_EXEMPT", background_exempt,
        )
    )  # fmt: skip
    (predictor,) = predictors(model)
    if norm == "none":
        torch.nn.init.normal_(predictor.cls_score.weight)
        torch.nn.init.normal_(predictor.cls_score.bias)
    path = tmp_path / "head.onnx"
    export_onnx(predictor, path, alpha=0.8)
    for rows in (1, 2, 37):
        features = torch.rand(rows, 32) * 3
        features[0, :16] = 0  # a head without features
        assert onnx_difference(predictor, path, features, alpha=0.8) < 1e-5
    assert onnx_difference(predictor, path, features, alpha=3.0) > 1e-4


@pytest.mark.parametrize("sigmoid", [False, True])
def test_means_of_the_classes_are_in_both_files(sigmoid, tiny_model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    options = ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", sigmoid, "MODEL.POSTHOC.KEEP_SUM", ""]
    model = with_means(tiny_model("deconfound", *options, "MODEL.POSTHOC.CLASS_MEANS", 6.0))
    (predictor,) = predictors(model)
    predictor.statistics.set_class_means(torch.rand(7, 32), torch.rand(32), 0.6)
    path = tmp_path / "head.onnx"
    export_onnx(predictor, path, alpha=0.4)
    traced = trace_model(model, images()[0], alpha=0.4)
    assert onnx_difference(predictor, path, torch.rand(9, 32) * 3, alpha=0.4) < 1e-5
    assert largest_difference(model, traced, images(), alpha=0.4) < 1e-3
    predictor.posthoc = dataclasses.replace(predictor.posthoc, class_means=0.0)
    assert onnx_difference(predictor, path, torch.rand(9, 32) * 3, alpha=0.4) > 1e-4


@pytest.mark.parametrize("loss", ["seesaw", "eqlv2"])
def test_onnx_has_the_scores_of_the_loss(loss, tiny_model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    options = ["MODEL.TDE.LOSS", loss, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", loss == "eqlv2"]
    model = with_means(tiny_model("deconfound", *options))
    (predictor,) = predictors(model)
    path = tmp_path / "head.onnx"
    export_onnx(predictor, path, alpha=0.4)
    assert onnx_difference(predictor, path, torch.rand(9, 32) * 3, alpha=0.4) < 1e-5
    # The background's column has its part in it.
    with torch.no_grad():
        predictor.cls_score.weight[-1].neg_()
    assert onnx_difference(predictor, path, torch.rand(9, 32) * 3, alpha=0.4) > 1e-4


def test_files(tiny_cfg, tiny_model, tiny_set, tmp_path):
    cfg = tiny_cfg("deconfound", "INPUT.MIN_SIZE_TEST", 64)
    image = DatasetCatalog.get(tiny_set["val"])[0]["file_name"]
    onnx = bool(pytest.importorskip("onnxruntime"))
    model = with_means(tiny_model())
    (predictor,) = predictors(model)
    predictor.statistics.set_classes([f"class {i}" for i in range(7)], "rrccfff")
    predictor.chosen = "alpha 1.5 by bbox/AP on birds"
    prepare = YacsRecipe(cfg).prepare
    files = run_export(model, prepare, image, tmp_path / "out", alpha=0.8, onnx=onnx)
    assert [file.name for file in files] == ["model.ts", "box_predictor.onnx"]
    assert all(file.stat().st_size > 1000 for file in files)
    # Classes, strengths and how they were chosen go with them.
    notes = {NOTES: ""}
    torch.jit.load(str(files[0]), _extra_files=notes)
    found = [json.loads(notes[NOTES])]
    for prop in pytest.importorskip("onnx").load(str(files[1])).metadata_props:
        assert prop.key == NOTES
        found.append(json.loads(prop.value))
    for one in found:
        assert one["classes"] == [f"class {i}" for i in range(7)]
        assert one["frequency"] == list("rrccfff") and one["sigmoid"] is False
        assert one["alpha"] == one["settings"]["class_"] == 0.8
        assert one["chosen"] == ""  # for another alpha
    assert len(found) == 2 and predictor.alpha == 1.5


def test_notes_claim_no_choice_that_nobody_made(tiny_model):
    model, words = with_means(tiny_model()), "alpha 1.5 by bbox/AP on birds"
    (predictor,) = predictors(model)
    predictor.chosen, predictor.calibrated_alpha = words, 1.5
    for alpha, expected in ((None, words), (1.5, words), (0.8, ""), (0.0, "")):
        with exported_at(model, alpha):
            assert about(predictor)["chosen"] == expected
        assert predictor.chosen == words
    predictor.alpha = 2.0  # by the config
    with exported_at(model, None):
        assert about(predictor)["alpha"] == 2.0 and about(predictor)["chosen"] == ""


class _Tokens(Backbone):
    """A network with torch's own attention, and perhaps with an operator that has no ONNX."""

    def __init__(self, unknown):
        super().__init__()
        self.unknown = unknown
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self._out_features = ["pooled"]
        self._out_feature_channels, self._out_feature_strides = {"pooled": 8}, {"pooled": None}

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.special.bessel_j0(tokens) if self.unknown else tokens
        return {"pooled": self.layer(tokens).mean(1)}


@pytest.mark.parametrize("unknown", [False, True])
def test_attention_has_onnx_and_what_has_none_is_left_out(unknown, tmp_path, caplog):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    predictor = TDEImagePredictor(ShapeSpec(channels=8), num_classes=4)
    predictor.feature_mean.mean.uniform_()
    model = ImageClassifier(
        backbone=_Tokens(unknown), predictor=predictor, pixel_mean=[9.0] * 3, pixel_std=[50.0] * 3
    ).eval()
    picture = tmp_path / "picture.png"
    Image.fromarray(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()).save(picture)

    def prepare(pixels):
        return {"image": torch.as_tensor(pixels.copy()).permute(2, 0, 1)}

    found = run_image_export(model, prepare, str(picture), tmp_path / "out")
    names = ["model.ts"] if unknown else ["model.ts", "model.onnx"]
    assert [file.name for file in found] == names
    assert {file.name for file in (tmp_path / "out").iterdir()} == set(names)
    assert ("ONNX is left out" in caplog.text) == unknown


def test_what_is_not_a_number_is_never_close():
    zero, nan = torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0])
    assert difference(zero, nan) == difference(nan, zero) == difference(nan, nan) == float("inf")
    assert difference(zero, zero[:2]) == float("inf") and difference(zero[:0], zero[:0]) == 0
    assert difference(zero, torch.tensor([0.0, -2.0, 1.0])) == 2


@pytest.mark.parametrize("wrong", [float("nan"), 0.5])
def test_a_wrong_file_is_refused_and_removed(
    wrong, tiny_cfg, tiny_model, tiny_set, tmp_path, monkeypatch
):
    image = DatasetCatalog.get(tiny_set["val"])[0]["file_name"]
    prepare = YacsRecipe(tiny_cfg("deconfound", "INPUT.MIN_SIZE_TEST", 64)).prepare
    run = TracedModel.__call__

    def run_wrong(traced, picture):
        found = run(traced, picture)
        found.scores = found.scores + wrong
        return found

    monkeypatch.setattr(TracedModel, "__call__", run_wrong)
    with pytest.raises(RuntimeError, match=r"model.ts differs from the model by .*removed"):
        run_export(with_means(tiny_model()), prepare, image, tmp_path / "out", onnx=False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("wrong", [float("nan"), 0.5])
def test_a_wrong_classifier_is_refused_and_removed(wrong, tmp_path, monkeypatch):
    cfg = get_cfg()
    add_tde_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE", "ImageClassifier",
            "MODEL.BACKBONE.NAME", "build_cifar_resnet_backbone",
            "MODEL.RESNETS.DEPTH", 14,
            "MODEL.RESNETS.STEM_OUT_CHANNELS", 4,
            "MODEL.IMAGE_CLASSIFIER.NUM_CLASSES", 4,
            "MODEL.DEVICE", "cpu",
        ]
    )  # fmt: skip
    model = build_model(cfg)
    load = torch.jit.load

    def load_wrong(path):
        module = load(path)
        # Right for the picture itself, wrong for the batch that is compared after it.
        return lambda images: module(images) + (wrong if len(images) > 1 else 0.0)

    picture = tmp_path / "picture.png"
    Image.fromarray(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()).save(picture)

    def prepare(pixels):
        return {"image": torch.as_tensor(pixels.copy()).permute(2, 0, 1)}

    out = tmp_path / "out"
    options = {"alpha": 0.0, "onnx": False}
    (good,) = run_image_export(model, prepare, str(picture), out, **options)
    assert good.exists()
    monkeypatch.setattr(torch.jit, "load", load_wrong)
    with pytest.raises(RuntimeError, match=r"model.ts differs from the model by .*removed"):
        run_image_export(model, prepare, str(picture), out, **options)
    assert list(out.iterdir()) == []


def test_a_predictor_of_nan_has_no_onnx(tiny_model, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (predictor,) = predictors(with_means(tiny_model()))
    export_onnx(predictor, tmp_path / "head.onnx", alpha=0.8)
    with torch.no_grad():
        predictor.bbox_pred.bias[0] = float("nan")
    found = onnx_difference(predictor, tmp_path / "head.onnx", torch.rand(3, 32), alpha=0.8)
    assert found == float("inf")


def test_no_mean_no_export(tiny_model):
    model = tiny_model()
    with pytest.raises(ValueError, match="estimate_feature_mean"):
        trace_model(model, images()[0])
    assert predictors(model)[0].alpha == 1.5
    trace_model(model, images()[0], alpha=0)
