"""What is measured on a GPU: the command of each benchmark, and which of its figures are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CELLS", "Cell"]

Pick = Callable[[dict], str]


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        arguments: of ``tools/benchmark.py``.
        tiny: further ones that make it small enough for a CPU and a test.
        rows: title to what takes its figure from the benchmark's JSON.
    """

    arguments: tuple[str, ...]
    tiny: tuple[str, ...]
    rows: dict[str, Pick]

    def command(self, tiny: bool) -> list[str]:
        return [*self.arguments, *(self.tiny if tiny else ())]


def _at(*path: str) -> Callable[[dict], Any]:
    def take(found: dict) -> Any:
        for name in path:
            found = found[name]
        return found

    return take


def _ms(*path: str) -> Pick:
    return lambda found: f"{1000 * _at(*path)(found):.3g} ms"


def _ratio(*path: str) -> Pick:
    return lambda found: f"{_at(*path)(found):.2f}"


def _megabytes(*path: str) -> Pick:
    def take(found: dict) -> str:
        value = _at(*path)(found)
        return "" if value is None else f"{value:.0f} MB"

    return take


def _mask(what: str) -> Pick:
    """Its ratio of time or memory in inference, whatever the number of instances."""
    ours = ": Detectron2 / this project"

    def take(found: dict) -> str:
        names = [
            n for n in found["ratios"] if n.startswith(f"{what}, inference") and n.endswith(ours)
        ]
        (name,) = names
        return f"{found['ratios'][name]:.1f}"

    return take


def _rate(*path: str) -> Pick:
    return lambda found: f"{_at(*path)(found):,.0f} images/s"


def _nms(found: dict) -> str:
    return ", ".join(f"{name.split(',')[1].strip()}: {v:.1f}" for name, v in _lvis(found).items())


def _lvis(found: dict) -> dict[str, float]:
    return {name: value for name, value in found["ratios"].items() if name.startswith("1203")}


def _losses(found: dict) -> str:
    one = found.get("mixed precision", found["fp32"])
    return f"{one['finite losses']} finite, {one['first loss']:.2f} to {one['last loss']:.2f}"


def _inference(batch: int) -> Cell:
    """Detectron2's seconds an image, and what of them each way of this project takes."""
    whole = "seconds an image, to results with RLEs"

    def pick(name: str) -> Pick:
        def take(found: dict) -> str:
            seconds = found[whole].get(name)  # small runs on a CPU have no float16
            if seconds is None:
                return ""
            return f"{1000 * seconds:.3g} ms ({found['ratios'][f'Detectron2 / {name}']:.2f}x)"

        return take

    names = {
        "Detectron2, fp32": "Detectron2",
        "this project": "this project",
        "optimized, exact": "this project, optimized",
        "optimized, bf16": "this project, bfloat16",
        "optimized, fp16": "this project, float16",
    }
    return Cell(
        ("inference", "--batch", str(batch), "--repeats", "5", "--dtypes", "bfloat16", "float16"),
        ("--size", "64", "--repeats", "1", "--warmup", "0", "--candidates", "100")
        + ("--batch", str(min(batch, 2)), "--dtypes", "bfloat16"),
        {
            f"an image of 800 px to RLEs, batch {batch}: {title}": pick(name)
            for title, name in names.items()
        },
    )


_HEAD = "TDE, this project"
_OURS = "Detectron2 / this project (TDE head, needed masks)"
_STEP = ("--size", "800", "--batch", "16", "--repeats", "5")
_SMALL_STEP = ("--size", "64", "--batch", "1", "--repeats", "1", "--warmup", "0")

CELLS = [
    _inference(1),
    _inference(8),
    Cell(
        ("head", "--repeats", "100", "--warmup", "10"),
        ("--proposals", "20", "--features", "16", "--classes", "7", "--repeats", "1"),
        {
            "head, 1000 regions, 1203 classes, TDE": _ms("seconds", _HEAD),
            "of it the ratio to Detectron2's softmax": _ratio("ratios", "TDE / softmax"),
            "all linear post-hoc steps and TDE / plain": _ratio(
                "ratios", "softmax, those and TDE / plain"
            ),
        },
    ),
    Cell(
        ("mean_update",),
        ("--regions", "16", "--features", "8", "--classes", "3", "--repeats", "1"),
        {"update of the running mean, 4096 regions": _ms("seconds", "update of the running mean")},
    ),
    Cell(
        ("nms", "--repeats", "9"),
        ("--proposals", "400", "--repeats", "1", "--warmup", "0"),
        {"NMS, Detectron2 / this project, 1203 classes": _nms},
    ),
    Cell(
        ("mask", "--repeats", "9"),
        ("--detections", "2", "--foreground", "2", "--classes", "9", "--repeats", "1"),
        {
            "mask head, inference, Detectron2 / this project": _mask("time"),
            "its peak memory, Detectron2 / this project": _mask("memory"),
        },
    ),
    Cell(
        ("training", *_STEP),
        _SMALL_STEP,
        {
            "training step, R50-FPN, 800 px, batch 16, fp32": _ms("seconds", "TDE head"),
            "its ratio to that with a softmax head": _ratio("ratios", "TDE head / softmax head"),
            "Detectron2 / this project, fp32": _ratio("ratios", _OURS),
            "its peak memory": _megabytes("peak megabytes", "TDE head"),
        },
    ),
    Cell(
        ("training", "--amp", *_STEP),
        _SMALL_STEP,
        {
            "the same step in mixed precision": _ms("seconds", "TDE head"),
            "Detectron2 / this project, mixed precision": _ratio("ratios", _OURS),
            "peak memory in mixed precision": _megabytes("peak megabytes", "TDE head"),
        },
    ),
    Cell(
        ("demo_training", "--amp"),
        ("--iterations", "5", "--train-images", "40", "SOLVER.IMS_PER_BATCH", "2"),
        {
            "demo's training on shapes, fp32, an iteration": _ms("fp32", "seconds an iteration"),
            "100 iterations in mixed precision, losses": _losses,
        },
    ),
    Cell(
        ("classification_loader", "--batch", "128"),
        ("--images", "20", "--batch", "4", "--seconds", "0.01"),
        {
            "training of ResNet-32 at 32 px, batch 128": _rate(
                "rates", "training step, ResNet-32, from memory", "images/s"
            )
        },
    ),
]
