"""As mask_rcnn_vitdet_b_sigmoid.py, in the stages of cascade_mask_rcnn_vitdet_b_100ep.py."""

from detectron2.model_zoo import get_config

from .mask_rcnn_vitdet_b_sigmoid import _lvis, dataloader, lr_multiplier, model, optimizer, train

_head = model.roi_heads.box_head
for _key in ("box_head", "box_predictor", "proposal_matcher"):
    model.roi_heads.pop(_key)
_cascade = get_config("common/models/cascade_rcnn.py").model.roi_heads
model.roi_heads.update(
    _target_=_cascade._target_,
    box_heads=[_head] * 3,
    box_predictors=_cascade.box_predictors,
    proposal_matchers=_cascade.proposal_matchers,
)
for _stage in model.roi_heads.box_predictors:
    _stage.update(_lvis)

train.output_dir = "./output/lazy/cascade_rcnn_vitdet_b_sigmoid"
