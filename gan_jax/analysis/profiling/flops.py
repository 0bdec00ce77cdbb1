"""FLOPs of a function, counted in its jaxpr: the same on every backend, and with each loop as often as it runs.

XLA's own count (`Compiled.cost_analysis()`) takes the body of a loop once and knows nothing of calls into libraries.
"""

import math
from collections.abc import Callable

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr


def count(function: Callable, *arguments) -> int:
    """2 for each multiply-add of the matrix products and convolutions that the function's results need; nothing else.

    A tap on a convolution's padding counts, a tap between the elements of a dilated operand does not: a strided
    convolution, its adjoint and its gradients cost the same. Winograd's products count as what they are. A
    `while_loop`, whose length nobody knows, counts once, a `cond` as its costliest branch.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(needed)


def _of_jaxpr(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name = equation.primitive.name
    if name in _COUNTED:
        return _COUNTED[name](equation.params, *(x.aval.shape for x in (*equation.invars, *equation.outvars)))
    inner = [_of_jaxpr(jaxpr) for jaxpr in jaxprs_in_params(equation.params)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _of_product(params, lhs, rhs, out) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _of_convolution(params, lhs, rhs, out) -> int:
    layout = params["dimension_numbers"]
    taps = [
        _taps(out[o], rhs[k], stride, low, hole, reach)
        for o, k, stride, (low, _), hole, reach in zip(
            layout.out_spec[2:],
            layout.rhs_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    channels = rhs[layout.rhs_spec[0]] * rhs[layout.rhs_spec[1]]  # out, and in (of one group)
    return 2 * lhs[layout.lhs_spec[0]] // params["batch_group_count"] * channels * math.prod(taps)


def _taps(outputs: int, kernel: int, stride: int, padding: int, dilation: int, kernel_dilation: int) -> int:
    """How many pairs of an output and a kernel element, along one axis, do not meet in a hole of the dilated input."""
    places = stride * np.arange(outputs)[:, None] + kernel_dilation * np.arange(kernel) - padding
    return int(np.sum(places % dilation == 0))


_COUNTED = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}
