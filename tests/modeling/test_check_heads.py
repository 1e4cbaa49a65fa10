"""Settings that a model would not look at are refused when it is built."""

from pathlib import Path

import pytest

from lvis_tde.engine import Trainer, load_config

CIFAR = str(Path(__file__).parents[2] / "configs/classification/cifar100_lt_tde.yaml")
PLAIN = ("MODEL.ROI_HEADS.NAME", "StandardROIHeads")


@pytest.mark.parametrize(
    "key, value",
    [("MODEL.TDE.LOSS", "seesaw"), ("MODEL.POSTHOC.LOGIT_ADJUSTMENT", 1.0),
     ("MODEL.POSTHOC.TAU_NORM", 0.5)],
)  # fmt: skip
def test_of_plain_heads(tiny_cfg, key, value):
    with pytest.raises(ValueError, match=f"{key} is {value!r}, but .* StandardROIHeads has no TDE"):
        Trainer.build_model(tiny_cfg("softmax", *PLAIN, key, value))
    Trainer.build_model(tiny_cfg("softmax", *PLAIN))
    Trainer.build_model(tiny_cfg("deconfound", key, value))


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.TDE.LOSS", "balanced_softmax"], "MODEL.IMAGE_CLASSIFIER.LOSS"),
        (["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True], "leave it False"),
    ],
)
def test_of_a_classifier(options, message):
    cfg = load_config(CIFAR, ["MODEL.DEVICE", "cpu", *options])
    with pytest.raises(ValueError, match=message):
        Trainer.build_model(cfg)
