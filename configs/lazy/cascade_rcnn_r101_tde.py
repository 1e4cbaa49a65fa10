from detectron2.model_zoo import get_config

from lvis_tde import TDEFastRCNNOutputLayers

from .lvis_v1 import dataloader, lr_multiplier, optimizer, train

model = get_config("common/models/cascade_rcnn.py").model
model.backbone.bottom_up.stages.depth = 101
model.proposal_generator.post_nms_topk = (2000, 1000)
model.roi_heads.num_classes = 1203
for _stage in model.roi_heads.box_predictors:  # a name without underscore would join the config
    _stage.update(
        _target_=TDEFastRCNNOutputLayers,
        norm="deconfound",
        num_heads=2,
        tau=16.0,
        gamma=1 / 32,
        alpha=1.5,
        test_score_thresh=0.0001,
        test_topk_per_image=300,
    )

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-101.pkl"
train.output_dir = "./output/lazy/cascade_rcnn_r101_tde"
