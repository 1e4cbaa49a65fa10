"""Detectron2's own R-CNN configs with TDE: nothing but the name of the ROI heads changes."""

import itertools
from pathlib import Path

import heads_util as util
import pytest
from detectron2 import model_zoo

FAMILIES = (
    "COCO-Detection",
    "COCO-InstanceSegmentation",
    "COCO-Keypoints",
    "COCO-PanopticSegmentation",
    "Cityscapes",
    "Detectron1-Comparisons",
    "LVISv0.5-InstanceSegmentation",
    "LVISv1-InstanceSegmentation",
    "Misc",
    "PascalVOC-Detection",
)


def _r_cnn_configs():
    root = Path(model_zoo.__file__).parent / "configs"
    for path in sorted(path for family in FAMILIES for path in (root / family).glob("*.yaml")):
        name = f"{path.parent.name}/{path.name}"
        # Models without a box classifier: RetinaNet, proposals only, semantic segmentation only.
        if not path.name.startswith(("Base", "retinanet", "rpn", "semantic")):
            yield name


@pytest.fixture(scope="module")
def covered(request):
    """Lists what was run at the end of the module, past pytest's capture."""
    ran = []
    yield ran
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nModel-zoo configs that trained and predicted with TDE: {len(ran)}")
        for heads, entries in itertools.groupby(sorted(ran), key=lambda entry: entry[0]):
            print(f"  {heads}: {', '.join(name for _, name in entries)}")


@pytest.mark.parametrize("name", _r_cnn_configs())
def test_model_zoo_config_trains_and_predicts_with_tde_heads(name, covered):
    cfg = util.zoo_config(name)
    cfg.MODEL.ROI_HEADS.NAME = util.TDE_NAMES[cfg.MODEL.ROI_HEADS.NAME]
    model = util.build(cfg)
    batch = [util.training_image(cfg)]
    losses = util.step(cfg, model, batch)
    util.assert_trained_and_finite(model, losses, util.infer(model, batch))
    note = " (its deformable convolutions replaced by plain ones)" if "dconv" in name else ""
    covered.append((cfg.MODEL.ROI_HEADS.NAME, name + note))
