from lvis_tde import TDEFastRCNNOutputLayers

from .mask_rcnn_vitdet_b_sigmoid import dataloader, lr_multiplier, model, optimizer, train

model.roi_heads.box_predictor.update(
    _target_=TDEFastRCNNOutputLayers,
    norm="deconfound",
    num_heads=2,
    tau=16.0,
    gamma=1 / 32,
    # A start: sigmoids need far less than a softmax's 1.5. tools/sweep_alpha.py finds it.
    alpha=0.35,
)

train.output_dir = "./output/lazy/mask_rcnn_vitdet_b_tde"
