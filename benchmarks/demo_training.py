"""The demo's model trained on the set of shapes: seconds an iteration, finite losses, memory.

Shapes need no font. Each precision trains from the start, as `tools/train_net.py` would.
"""

import math
import statistics
import tempfile
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng

from lvis_tde.data.generated import KINDS
from lvis_tde.engine import Trainer, load_config

__all__ = ["add_arguments", "run"]

CONFIG = Path(__file__).parents[1] / "configs" / "demo_deconfound.yaml"


def add_arguments(parser):
    """Options of ``benchmark.py demo_training``."""
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--amp", action="store_true", help="train once more in mixed precision (CUDA alone)"
    )
    parser.add_argument("--train-images", type=int, default=400, help="of the generated set")
    parser.add_argument("opts", nargs="*", help="KEY VALUE of the demo's config")


def run(args):
    """Median seconds an iteration, first and last loss, and peak memory, of each precision."""
    torch.set_num_threads(args.threads)
    kind = KINDS["shapes"]
    precisions = {"fp32": False}
    if args.amp and torch.device(args.device).type == "cuda":
        precisions["mixed precision"] = True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "datasets"
        kind.make(root, seed=args.seed, num_train=args.train_images)
        train = kind.register(root, seed=args.seed)["train"]
        DatasetCatalog.get(train)  # fills in the metadata
        found = {
            name: _train(args, train, Path(folder) / name, amp) for name, amp in precisions.items()
        }
    return {
        "benchmark": f"demo's model, {args.iterations} iterations on shapes",
        "device": args.device,
        "threads": args.threads,
        "torch": torch.__version__,
        **found,
    }


def _train(args, train, folder, amp):
    options = ["OUTPUT_DIR", str(folder), "SEED", args.seed, "MODEL.DEVICE", args.device]
    options += ["DATASETS.TRAIN", (train,), "DATASETS.TEST", (), "SOLVER.AMP.ENABLED", amp]
    options += ["SOLVER.MAX_ITER", args.iterations, "SOLVER.STEPS", ()]
    options += ["MODEL.ROI_HEADS.NUM_CLASSES", len(MetadataCatalog.get(train).thing_classes)]
    seed_all_rng(args.seed)
    trainer = Trainer(load_config(str(CONFIG), [*options, *args.opts]))
    cuda = torch.device(args.device).type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()  # ends at the first loss that is not finite
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert len(losses) == args.iterations, len(losses)
    times = [value for value, _ in trainer.storage.history("time").values()]
    return {
        "seconds an iteration": statistics.median(times),
        "finite losses": sum(map(math.isfinite, losses)),
        "first loss": losses[0],
        "last loss": losses[-1],
        "peak megabytes": torch.cuda.max_memory_allocated() / 1e6 if cuda else None,
    }
