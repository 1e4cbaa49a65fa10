"""Every shipped yacs config builds and trains; Detectron2's own configs are the oracle."""

from pathlib import Path

import heads_util as util
import pytest
from detectron2 import model_zoo
from detectron2.config import LazyConfig
from detectron2.data import MetadataCatalog

from lvis_tde.engine import load_config

ROOT = Path(__file__).parent.parent / "configs"
ALL = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))
# Classifiers and studies have tests of their own.
NAMES = [name for name in ALL if not name.startswith(("classification/", "studies/"))]
RUNS = [name for name in NAMES if "Base-" not in name]
BACKBONES = {"r50": "R_50", "r101": "R_101", "x101": "X_101_32x8d"}


def load(name):
    return load_config(str(ROOT / name))


def upstream(name):
    return load_config(model_zoo.get_config_file(name))


def differences(a, b, prefix=""):
    """Dotted names of the keys in which two configs differ."""
    for key in {**a, **b}:
        if key not in a or key not in b:
            yield prefix + key
        elif isinstance(a[key], dict) and isinstance(b[key], dict):
            yield from differences(a[key], b[key], f"{prefix}{key}.")
        elif a[key] != b[key]:
            yield prefix + key


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_and_trains(name):
    cfg = util.shrink(load(name))
    # What reads the counts of its training set.
    if cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS or cfg.MODEL.TDE.LOSS == "balanced_softmax":
        counts = [{"id": i, "image_count": i + 1} for i in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        cfg.DATASETS.TRAIN = (f"counted_{len(counts)}",)
        MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).class_image_count = counts
    model, batch = util.build(cfg), [util.training_image(cfg)]
    losses = util.step(cfg, model, batch)
    detections = util.infer(model, batch)
    if cfg.MODEL.ROI_HEADS.NAME in util.TDE_NAMES.values():
        util.assert_trained_and_finite(model, losses, detections)
        assert {p.cls_score.norm for p in util.predictors(model)} == {cfg.MODEL.TDE.NORM}
    else:
        util.assert_finite(losses, detections)


@pytest.mark.parametrize("name", ["demo_softmax.yaml", "demo_seesaw.yaml", "demo_eqlv2.yaml"])
def test_every_parameter_of_the_demo_has_a_gradient(name):
    # DistributedDataParallel waits for each of them.
    model = util.build(cfg := util.shrink(load(name)))
    util.step(cfg, model, [util.training_image(cfg)])
    trained = {key: p.grad is not None for key, p in model.named_parameters() if p.requires_grad}
    assert all(trained.values()) and "backbone.fpn_output4.weight" in trained
    assert "backbone.fpn_output5.weight" not in trained


@pytest.mark.parametrize("backbone", BACKBONES)
def test_baselines_are_those_of_detectron2(backbone):
    theirs = f"LVISv1-InstanceSegmentation/mask_rcnn_{BACKBONES[backbone]}_FPN_1x.yaml"
    ours = load(f"mask_rcnn_{backbone}_softmax.yaml")
    assert set(differences(ours, upstream(theirs))) == {"OUTPUT_DIR"}


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_cascade_is_detectron2s_on_the_lvis_baseline(version):
    cascade = load({"v1": "", "v0.5": "lvis_v0.5/"}[version] + "cascade_r101_softmax.yaml")
    on_coco = upstream("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    lvis = upstream(f"LVIS{version}-InstanceSegmentation/mask_rcnn_R_101_FPN_1x.yaml")
    cascade_keys = {
        "MODEL.ROI_HEADS.NAME",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    }
    assert set(differences(cascade, lvis)) == cascade_keys | {"OUTPUT_DIR"}
    assert not cascade_keys & set(differences(cascade, on_coco))


def test_c4_is_detectron2s_on_the_lvis_baseline():
    c4 = load("mask_rcnn_r50_c4_softmax.yaml")
    on_coco = upstream("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml")
    lvis = upstream("LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    lvis_keys = {"MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"}
    for key in differences(c4, on_coco):
        assert not key.startswith("MODEL.") or key in lvis_keys, key
    for key in differences(c4, lvis):
        assert key.startswith("MODEL.") and key not in lvis_keys or key == "OUTPUT_DIR", key


def test_tde_is_the_deconfound_classifier_with_tde_and_differs_in_the_heads_alone():
    pairs = [(n, n.replace("_tde", "_softmax")) for n in RUNS if "_tde" in n]
    assert len(pairs) == 6
    for tde, softmax in pairs:
        cfg = load(tde)
        assert set(differences(cfg, load(softmax))) == {"MODEL.ROI_HEADS.NAME", "OUTPUT_DIR"}
        assert cfg.MODEL.ROI_HEADS.NAME in util.TDE_NAMES.values()
        assert (cfg.MODEL.TDE.NORM, cfg.MODEL.TDE.ALPHA) == ("deconfound", 1.5)


@pytest.mark.parametrize("folder", ["", "lvis_v0.5/"])
@pytest.mark.parametrize("norm", ["cosine", "capsule"])
def test_other_norms_differ_from_tde_in_the_norm_alone(folder, norm):
    cfg = load(f"{folder}cascade_r101_{norm}.yaml")
    changed = differences(cfg, load(f"{folder}cascade_r101_tde.yaml"))
    assert set(changed) == {"MODEL.TDE.NORM", "OUTPUT_DIR"} and cfg.MODEL.TDE.NORM == norm


def test_every_training_has_the_folder_of_its_name():
    yacs = {
        name: load(name).OUTPUT_DIR
        for name in ALL
        if "Base-" not in name and "studies/" not in name
    }
    lazy = {
        f"lazy/{path.name}": LazyConfig.load(str(path)).train.output_dir
        for path in (ROOT / "lazy").glob("*.py")
        # What the others share, and what Detectron2 0.6 cannot load (test_vitdet_config.py).
        if path.name != "lvis_v1.py" and "vitdet" not in path.name
    }
    assert len(lazy) == 2
    for name, folder in {**yacs, **lazy}.items():
        assert Path(folder) == Path("output", name).with_suffix("")


def test_the_guide_lists_every_file():
    text = (ROOT / "README.md").read_text("utf-8")
    files = [*ALL, *(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))]
    assert [name for name in files if f"`{name}`" not in text] == []
