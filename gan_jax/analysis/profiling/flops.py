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
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in _COUNTED:
            total += _COUNTED[name](params, *(x.aval.shape for x in (*equation.invars, *equation.outvars)))
        else:
            inner = [_of_jaxpr(jaxpr) for jaxpr in jaxprs_in_params(params)]
            total += max(inner) if name == "cond" else sum(inner) * (params["length"] if name == "scan" else 1)
    return total


def _of_product(params, lhs, rhs, out) -> int:
    (contracted, _), _ = params["dimension_numbers"]
    return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _of_convolution(params, lhs, rhs, out) -> int:
    layout, taps = params["dimension_numbers"], 1
    for axis, (output, kernel) in enumerate(zip(layout.out_spec[2:], layout.rhs_spec[2:], strict=True)):
        starts = params["window_strides"][axis] * np.arange(out[output]) - params["padding"][axis][0]
        places = starts[:, None] + params["rhs_dilation"][axis] * np.arange(rhs[kernel])
        taps *= int(np.sum(places % params["lhs_dilation"][axis] == 0))  # all others meet a hole of the dilated input
    channels = rhs[layout.rhs_spec[0]] * rhs[layout.rhs_spec[1]]  # out, and in (of one group)
    return 2 * lhs[layout.lhs_spec[0]] // params["batch_group_count"] * channels * taps


_COUNTED = {"dot_general": _of_product, "conv_general_dilated": _of_convolution}
