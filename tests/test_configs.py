"""Every shipped yacs config builds and trains; Detectron2's own configs are the oracle."""

from pathlib import Path

import heads_util as util
import pytest
from detectron2 import model_zoo

from lvis_tde.engine import load_config

ROOT = Path(__file__).parent.parent / "configs"
NAMES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))
RUNS = [name for name in NAMES if "Base-" not in name]
BACKBONES = {"r50": "R_50", "r101": "R_101", "x101": "X_101_32x8d"}


def load(name):
    return load_config(str(ROOT / name))


def baseline(version, backbone):
    # The model of the README lies at the top.
    folder = "" if (version, backbone) == ("v1", "r50") else f"lvis_{version}/"
    return load(f"{folder}mask_rcnn_{backbone}_softmax.yaml")


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
    model, batch = util.build(cfg), [util.training_image(cfg)]
    losses = util.step(cfg, model, batch)
    detections = util.infer(model, batch)
    if cfg.MODEL.ROI_HEADS.NAME in util.TDE_NAMES.values():
        util.assert_trained_and_finite(model, losses, detections)
        assert {p.cls_score.norm for p in util.predictors(model)} == {cfg.MODEL.TDE.NORM}
    else:
        util.assert_finite(losses, detections)


@pytest.mark.parametrize("version", ["v1", "v0.5"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_baselines_are_those_of_detectron2(version, backbone):
    theirs = f"LVIS{version}-InstanceSegmentation/mask_rcnn_{BACKBONES[backbone]}_FPN_1x.yaml"
    ours = baseline(version, backbone)
    assert set(differences(ours, upstream(theirs))) == {"OUTPUT_DIR"}


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_cascade_is_detectron2s_on_the_lvis_baseline(version):
    cascade = load(f"lvis_{version}/cascade_r101_softmax.yaml")
    on_coco = upstream("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    lvis = baseline(version, "r101")
    cascade_keys = {
        "MODEL.ROI_HEADS.NAME",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    }
    assert set(differences(cascade, lvis)) == cascade_keys | {"OUTPUT_DIR"}
    assert not cascade_keys & set(differences(cascade, on_coco))


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_c4_is_detectron2s_on_the_lvis_baseline(version):
    c4 = load(f"lvis_{version}/mask_rcnn_r50_c4_softmax.yaml")
    on_coco = upstream("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml")
    lvis = baseline(version, "r50")
    lvis_keys = {"MODEL.ROI_HEADS.NUM_CLASSES", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"}
    for key in differences(c4, on_coco):
        assert not key.startswith("MODEL.") or key in lvis_keys, key
    for key in differences(c4, lvis):
        assert key.startswith("MODEL.") and key not in lvis_keys or key == "OUTPUT_DIR", key


def test_tde_configs_differ_from_their_baseline_in_the_heads_alone():
    pairs = [(n, n.replace("_tde", "_softmax")) for n in RUNS if "mask_rcnn" in n and "_tde" in n]
    assert len(pairs) == 8
    for tde, softmax in pairs:
        assert set(differences(load(tde), load(softmax))) == {"MODEL.ROI_HEADS.NAME", "OUTPUT_DIR"}


@pytest.mark.parametrize("version", ["v1", "v0.5"])
def test_the_rows_of_the_papers_table(version):
    softmax = load(f"lvis_{version}/cascade_r101_softmax.yaml")
    for norm in ("cosine", "capsule", "deconfound"):
        off = load(f"lvis_{version}/cascade_r101_{norm}.yaml")
        on = load(f"lvis_{version}/cascade_r101_{norm}_tde.yaml")
        assert off.MODEL.TDE.NORM == norm and off.MODEL.TDE.ALPHA == 0
        allowed = {"MODEL.ROI_HEADS.NAME", "MODEL.TDE.NORM", "MODEL.TDE.ALPHA", "OUTPUT_DIR"}
        assert set(differences(off, softmax)) <= allowed
        assert set(differences(on, off)) == {"MODEL.TDE.ALPHA"} and on.MODEL.TDE.ALPHA == 1.5


def test_no_two_trainings_share_a_folder():
    # TDE on and off is one training: those two share theirs on purpose.
    trained = [n for n in RUNS if not ("cascade" in n and n.endswith("_tde.yaml"))]
    trained = [n for n in trained if not n.startswith("demo")]  # the demo gives its own
    folders = [load(name).OUTPUT_DIR for name in trained]
    assert len(set(folders)) == len(folders)
