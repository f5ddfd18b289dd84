"""Applications of autograd Functions are shown, whoever holds on to what applies them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from passes.user_code.hooks import applied_by


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: int = 2) -> Tensor:
        return x * by

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2, None


class SetUp(torch.autograd.Function):
    """In the form for transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x + 1

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2


double = Double.apply


def teller(told: list[str]) -> Callable[..., Any]:
    def apply(function: Any, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        told.append(function.__name__)
        return plain(*args, **kwargs)

    return apply


def test_each_is_shown_and_does_what_it_did() -> None:
    told: list[str] = []
    x = torch.ones(2, requires_grad=True)
    with applied_by(teller(told)):
        y = double(x) + Double.apply(x, 2) + SetUp.apply(x)
    assert told == ["Double", "Double", "SetUp"]
    assert y.tolist() == [7.0, 7.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [6.0, 6.0]


def test_the_innermost_is_asked_first() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with applied_by(teller(outer)):
        with applied_by(lambda function, plain, args, kwargs: inner.append("inner")):
            double(torch.ones(1))
        assert (outer, inner) == ([], ["inner"])
        with applied_by(teller(inner)):
            double(torch.ones(1))
    assert (outer, inner) == (["Double"], ["inner", "Double"])


def test_functions_of_torch_and_ours_are_not_shown() -> None:
    told: list[str] = []
    x = torch.ones(2, requires_grad=True)
    with applied_by(teller(told)):
        torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=True)
    assert told == []


def test_transforms_go_their_own_way() -> None:
    with applied_by(teller([])):
        assert torch.func.vmap(SetUp.apply)(torch.ones(2)).tolist() == [3.0, 3.0]


def test_nothing_is_left_behind() -> None:
    with pytest.raises(ZeroDivisionError), applied_by(teller([])):
        raise ZeroDivisionError
    assert "apply" not in vars(_SingleLevelFunction)
    assert double(torch.ones(1)).tolist() == [2.0]


def test_other_threads_see_nothing_of_it() -> None:
    told: list[str] = []
    begun, done = threading.Event(), threading.Event()
    others: list[str] = []

    def other() -> None:
        with applied_by(teller(others)):
            begun.set()
            assert done.wait(10)
            double(torch.ones(1))

    thread = threading.Thread(target=other)
    with applied_by(teller(told)):
        thread.start()
        assert begun.wait(10)
        double(torch.ones(1))
        assert (told, others) == (["Double"], [])
    done.set()
    thread.join()
    assert (told, others) == (["Double"], ["Double"])
    assert "apply" not in vars(_SingleLevelFunction)
