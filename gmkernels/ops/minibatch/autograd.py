"""Derivatives of minibatch discrimination.

With e_ijb = exp(-||M_ib - M_jb||_1) and s_ijbc = sign(M_ibc - M_jbc):

* first order:  dM_ibc = - sum_{j != i} (g_ib + g_jb) e_ijb s_ijbc
* second order, for a cotangent v of dM: with p_ijb = sum_c s_ijbc (v_ibc - v_jbc),
  dg_ib = - sum_j e_ijb p_ijb   and   dM_ibc = sum_j (g_ib + g_jb) e_ijb p_ijb s_ijbc,
  because the derivative of a sign is zero wherever it exists.
"""

from __future__ import annotations

from . import library


@library.minibatch_discrimination.derivative
def _first(needs, saved, constants, grads):
    (m,), (backend,) = saved, constants
    return (library.minibatch_discrimination_backward(grads[0], m, backend),)


@library.minibatch_discrimination_backward.derivative
def _second(needs, saved, constants, grads):
    return library.minibatch_discrimination_double_backward(grads[0], *saved, *constants)
