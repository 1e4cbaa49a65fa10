"""Detectron2's ViTDet-B on LVIS v1, for its published weights or to be trained: see docs/vitdet.md.

What its project ``projects/ViTDet`` has in configs/LVIS/mask_rcnn_vitdet_b_100ep.py, key by key,
with this package's evaluator. Batches of 64 images, made for 64 GPUs.
"""

from functools import partial

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.model_zoo import get_config
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from lvis_tde.engine.checks import check_vit
from lvis_tde.modeling.sigmoid import ImageCountWeights

from .lvis_v1 import dataloader, train

check_vit()
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate  # noqa: E402

_size = 1024
dataloader.train.total_batch_size = 64
dataloader.train.mapper.update(
    augmentations=[
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=_size, target_width=_size),
        L(T.FixedSizeCrop)(crop_size=(_size, _size), pad=False),
    ],
    image_format="RGB",
    recompute_boxes=True,  # after the crop
)
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=_size, max_size=_size)
]

_lvis = dict(
    test_score_thresh=0.02,
    test_topk_per_image=300,
    use_sigmoid_ce=True,
    use_fed_loss=True,
    # Detectron2's file has a lambda here, which no saved config can hold.
    get_fed_loss_cls_weights=L(ImageCountWeights)(
        datasets="${dataloader.train.dataset.names}", power=0.5
    ),
)
model = get_config("common/models/mask_rcnn_vitdet.py").model
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor.update(_lvis)

# 100 epochs: 156250 iterations of 64 images.
train.max_iter = 156250
train.amp.enabled = True
train.ddp.fp16_compression = True
train.init_checkpoint = (
    "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
)
train.output_dir = "./output/lazy/mask_rcnn_vitdet_b_sigmoid"

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[138889, 150463], num_updates=train.max_iter
    ),
    warmup_length=250 / train.max_iter,
    warmup_factor=0.001,
)

optimizer = get_config("common/optim.py").AdamW
optimizer.lr = 2e-4
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
