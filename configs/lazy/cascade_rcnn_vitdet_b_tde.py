from lvis_tde import TDEFastRCNNOutputLayers

from .cascade_rcnn_vitdet_b_sigmoid import dataloader, lr_multiplier, model, optimizer, train

for _stage in model.roi_heads.box_predictors:
    _stage.update(
        _target_=TDEFastRCNNOutputLayers,
        norm="deconfound",
        num_heads=2,
        tau=16.0,
        gamma=1 / 32,
        alpha=0.35,  # as in mask_rcnn_vitdet_b_tde.py
    )

train.output_dir = "./output/lazy/cascade_rcnn_vitdet_b_tde"
