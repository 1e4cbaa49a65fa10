"""Steps that make a trained classifier fair to rare classes, without training. Needs torch alone.

Shape shorthand: R regions (or images), C foreground classes, K heads. ``logits`` are (R, C + 1)
with the background last; (R, C) with ``background=False``, as sigmoids and image classifiers have
them. The foreground is adjusted, and a background column stays as it is (TDE alone has a term for
it, too), so what becomes of the background is one choice of its own:

    exempt: it keeps its factual probability, and the rest is dealt to the foreground
    joint: one softmax over the adjusted foreground and the background

Every function is pure and computes in fp32 at least, under autocast, too. :func:`compose` puts
them together in one order. All that is linear in the logits, which is all of it but
:func:`keep_sum`, :func:`fracal_sigmoid` and :func:`class_means`, costs one pass over them.
"""

from .class_means import class_means
from .composition import Composition, Settings, compose
from .exemption import exempt
from .fractal import fractal_dimension
from .functional import fracal, logit_adjustment, logn, norcal, tau_norm, tde
from .sigmoid import fracal_sigmoid, keep_sum
from .statistics import Statistics

__all__ = [
    "Composition",
    "Settings",
    "Statistics",
    "class_means",
    "compose",
    "exempt",
    "fracal",
    "fracal_sigmoid",
    "fractal_dimension",
    "keep_sum",
    "logit_adjustment",
    "logn",
    "norcal",
    "tau_norm",
    "tde",
]
