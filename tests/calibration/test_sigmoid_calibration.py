"""Estimate, sweep, explanation and export of a trained sigmoid model."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.env import seed_all_rng
from heads_util import predictors

from lvis_tde.calibration.alpha import predict_for_alphas
from lvis_tde.calibration.checkpoint import load_trained, run_estimate
from lvis_tde.calibration.explain import explain, explain_detections
from lvis_tde.calibration.statistics import gather_class_statistics
from lvis_tde.calibration.sweep import format_sweep, run_sweep
from lvis_tde.engine import Trainer, YacsRecipe, load_config
from lvis_tde.export import export_onnx, largest_difference, onnx_difference, trace_model
from lvis_tde.posthoc import Settings
from lvis_tde.predictor import ClassInfo, TDEDemo
from lvis_tde.visualization.charts import plot_explanation

KEPT = dict(posthoc=Settings(0.4, 0.4, keep_sum="factual"))
STEPS = dict(tau_norm=0.5, logit_adjustment=0.5, norcal=0.1, fracal=1.0)
ADJUSTED = dict(posthoc=Settings(0.1, 0.3, **STEPS))
LINEAR = dict(posthoc=Settings(0.1, 0.3, **STEPS, keep_sum=""))
PAIRS = [(0.0, 0.0), (0.5, 0.5), (0.0, 0.5), (0.5, 0.0)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_set):
    """A federated sigmoid model after some steps, with a mean: its config."""
    from conftest import ROOT, TINY

    folder = tmp_path_factory.mktemp("sigmoid")
    cfg = load_config(
        str(ROOT / "configs" / "demo_softmax.yaml"),
        [*TINY, "OUTPUT_DIR", str(folder), "SEED", 1, "SOLVER.MAX_ITER", 8]
        + ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64]
        + ["MODEL.ROI_HEADS.NAME", "TDEROIHeads", "MODEL.TDE.NORM", "none", "MODEL.TDE.ALPHA", 0.4]
        + ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True, "MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True]
        + ["MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", 4, "MODEL.TDE.NUM_HEADS", 1]
        + ["DATASETS.TRAIN", (tiny_set["train"],), "DATASETS.TEST", ()],
    )
    seed_all_rng(1)
    Trainer(cfg).train()
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    cfg.DATASETS.TEST = (tiny_set["calib"],)
    return cfg


def model_of(cfg, **options):
    model = load_trained(YacsRecipe(cfg))
    gather_class_statistics(model, cfg.DATASETS.TRAIN)
    for predictor in predictors(model):
        for name, value in options.items():
            setattr(predictor, name, value)
    return model


def test_estimate_and_sweep(trained, tmp_path):
    cfg = trained.clone()
    # What a user has: the config of a model with upstream's heads.
    cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.TDE.NORM = "StandardROIHeads", "deconfound"
    cfg.OUTPUT_DIR = str(tmp_path)
    found = run_estimate(YacsRecipe(cfg), max_batches=4)
    assert found.num_foreground[0] > 0 and found.means[0].any()
    written = load_config(str(tmp_path / "config_tde.yaml"), ["OUTPUT_DIR", str(tmp_path)])
    assert written.MODEL.ROI_HEADS.NAME == "TDEROIHeads" and written.MODEL.TDE.NORM == "none"
    report = run_sweep(YacsRecipe(written), (0.0, 0.25), metric="bbox/AP50")
    assert set(report["results"]) == {"0", "0.25"}
    chosen = model_of(load_config(str(tmp_path / "config_alpha.yaml")))
    (predictor,) = predictors(chosen)
    assert predictor.use_sigmoid_ce and predictor.calibrated_alpha == report["alpha"]
    # The next strength, from what was written; the statistics are in the checkpoint.
    written = load_config(str(tmp_path / "config_alpha.yaml"))
    options = dict(setting="logit_adjustment", metric="bbox/AP50")
    report = run_sweep(YacsRecipe(written), (0.5, 1.0), **options)
    assert "| logit_adjustment " in format_sweep(report)
    written = load_config(str(tmp_path / "config_logit_adjustment.yaml"))
    assert written.MODEL.POSTHOC.LOGIT_ADJUSTMENT == report["logit_adjustment"] >= 0.5
    last = predictors(load_trained(YacsRecipe(written)))[0]
    assert last.calibrated_alpha == predictor.calibrated_alpha == last.alpha
    assert last.statistics.images.any() and last.statistics.logit_std.all()
    with pytest.raises(ValueError, match="setting='beta' must be one of alpha, tau_norm"):
        run_sweep(YacsRecipe(written), setting="beta")
    # The class list of another set: refused, unless its statistics are to be gathered.
    MetadataCatalog.get("sigmoid_renamed").thing_classes = list("abcdefg")
    written.DATASETS.TEST = ("sigmoid_renamed",)
    for load in (load_trained, YacsRecipe.load_model):
        with pytest.raises(ValueError, match="Class 0 of 'sigmoid_renamed' is 'a', but"):
            load(YacsRecipe(written))
    assert load_trained(YacsRecipe(written), ()) is not None


def test_one_pass_for_strengths_of_both_parts(trained, make_batch):
    model, inputs = model_of(trained), make_batch()
    (predictor,) = predictors(model)
    seen = set()
    for strengths, output in zip(PAIRS, predict_for_alphas(model, inputs, PAIRS)):
        predictor.alpha, predictor.alpha_region = strengths
        with torch.no_grad():
            expected = model(inputs)
        for ours, theirs in zip(output, expected):
            torch.testing.assert_close(ours["instances"].scores, theirs["instances"].scores)
        seen.add(round(output[0]["instances"].scores.sum().item(), 6))
    assert len(seen) == len(PAIRS)
    with pytest.raises(ValueError, match="alpha=-1"):
        predict_for_alphas(model, inputs, [(0.5, -1.0)])


@pytest.mark.parametrize("options", [{}, dict(alpha_region=0.1), KEPT, ADJUSTED])
def test_explanations_add_up(trained, make_batch, options):
    model, inputs = model_of(trained, **options), make_batch()
    (predictor,) = predictors(model)
    x = torch.rand(4, predictor.cls_score.in_features)
    parts = explain(predictor, x)
    assert parts.sigmoid and torch.equal(parts.total - parts.indirect, parts.direct)
    torch.testing.assert_close(parts.factual_probs, parts.total.sigmoid())
    torch.testing.assert_close(parts.direct_probs, parts.adjusted.sigmoid())
    assert parts.indirect[:, :-1].all() and not parts.indirect[:, -1].any()
    assert parts.exemption.any() == (options in (KEPT, ADJUSTED))
    assert parts.other.any() == (options == ADJUSTED)
    torch.testing.assert_close(
        parts.probs.float(), predictor.predict_probs(predictor(x), [Instances((1, 1), x=x)])[0]
    )
    with torch.no_grad():
        expected = model(inputs)
    for (found, rows), output in zip(explain_detections(model, inputs), expected):
        assert len(found) == len(rows) > 0
        torch.testing.assert_close(found.scores, output["instances"].scores)
    names = [f"class {i}" for i in range(7)]
    labels = [t.get_text() for a in plot_explanation(parts, 0, class_names=names).axes
              for t in a.get_yticklabels()]  # fmt: skip
    assert "class 0" in labels and "background" not in labels


def test_demo_without_and_with_both_parts(trained):
    model = model_of(trained, alpha=0.0, alpha_region=0.3)
    demo = TDEDemo(model, YacsRecipe(trained).prepare, ClassInfo(list("abcdefg"), None))
    picture, _ = demo.compare(torch.full((64, 64, 3), 90, dtype=torch.uint8).numpy())
    assert picture.ndim == 3 and demo.model.roi_heads.box_predictor.strengths == (0.3, 0.0)


@pytest.mark.parametrize("options", [dict(alpha_region=0.1), KEPT, ADJUSTED, LINEAR])
def test_export(trained, make_batch, options, tmp_path):
    model = model_of(trained, **options)
    images = [one["image"] for one in make_batch()]
    traced = trace_model(model, images[0])
    assert largest_difference(model, traced, images) < 1e-4
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (predictor,) = predictors(model)
    if options in (KEPT, ADJUSTED):
        keep = options["posthoc"].keep_sum
        with pytest.raises(ValueError, match=f"keep_sum='{keep}' has no ONNX export with"):
            export_onnx(predictor, tmp_path / "head.onnx")
        return
    export_onnx(predictor, tmp_path / "head.onnx")
    features = torch.rand(9, predictor.cls_score.in_features) * 3
    assert onnx_difference(predictor, tmp_path / "head.onnx", features) < 1e-5
