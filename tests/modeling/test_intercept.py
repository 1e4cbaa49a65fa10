"""Interceptions change one instance, nest, and leave no trace."""

import threading

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


def test_threads_do_not_meet_each_others_functions():
    module, inside, results = Doubler(), threading.Barrier(2), {}
    first_is_out = threading.Event()

    def work(offset):
        with intercepted(module, "forward", lambda original, x: original(x) + offset):
            inside.wait(10)  # both are
            results[offset] = module(3)
            inside.wait(10)
            if offset == 200:
                first_is_out.wait(10)
                results["after the first"] = module(3)
        first_is_out.set()

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (100, 200)]
    for thread in threads:
        thread.start()
    inside_meanwhile = module(3)
    for thread in threads:
        thread.join()
    assert results == {100: 106, 200: 206, "after the first": 206} and inside_meanwhile == 6
    assert module(3) == 6 and "forward" not in vars(module)
