"""What tests of experiments share: a set and a training of seconds, and an evaluation by itself."""

from conftest import TINY
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset

from lvis_tde.calibration.checkpoint import load_trained
from lvis_tde.calibration.replay import box_branch_only
from lvis_tde.calibration.settings import tde_predictors
from lvis_tde.config import use_tde_on_softmax
from lvis_tde.engine import YacsRecipe
from lvis_tde.evaluation import LVISEvaluator
from lvis_tde.experiments.steps import measured

SMALL = dict(num_train=16, num_calib=4, num_val=4, num_classes=7, image_size=64)
SHORT = [*TINY, "SOLVER.MAX_ITER", 2, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64]
# Of a study file, which has lists for tuples and the number of classes from its set.
IN_FILE = [
    value
    for pair in zip(SHORT[::2], SHORT[1::2])
    for value in (pair[0], list(pair[1]) if isinstance(pair[1], tuple) else pair[1])
    if pair[0] != "MODEL.ROI_HEADS.NUM_CLASSES"
]


def evaluated_alone(cfg, names, split, settings, *amounts):
    """Box figures of settings by Detectron2's own loop, from the checkpoint of a training.

    ``amounts`` are what ``measured`` takes the means from.
    """
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    use_tde_on_softmax(cfg)
    model = load_trained(YacsRecipe(cfg))
    measured(cfg, model, *amounts)
    (predictor,) = tde_predictors(model)
    predictor.posthoc = settings
    evaluator = LVISEvaluator(names[split], max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)
    with box_branch_only(model):
        return inference_on_dataset(
            model, build_detection_test_loader(cfg, names[split]), evaluator
        )
