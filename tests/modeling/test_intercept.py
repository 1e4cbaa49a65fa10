"""Interceptions change one instance, nest, and leave no trace."""

import pytest
from torch import nn

from lvis_tde.modeling.intercept import intercepted


class Doubler(nn.Module):
    def forward(self, x):
        return 2 * x


def test_calls_pass_through_the_function_and_nest():
    module, other = Doubler(), Doubler()
    with intercepted(module, "forward", lambda original, x: original(x) + 1):
        assert module(3) == 7 and other(3) == 6
        with intercepted(module, "forward", lambda original, x: 10 * original(x)):
            assert module(3) == 70
        assert module(3) == 7
    assert module(3) == 6 and "forward" not in vars(module)


def test_an_error_leaves_the_module_as_it_was():
    module = Doubler()
    with pytest.raises(ZeroDivisionError), intercepted(module, "forward", lambda *_: 1 / 0):
        module(3)
    assert module(3) == 6
    with pytest.raises(AttributeError), intercepted(module, "no_such_method", print):
        pass
