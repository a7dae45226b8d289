"""Prints the polynomial coefficients of csrc/include/gmk/vmath.h and gmkernels/core/triton_math.py.

Each minimises the function's relative error in least squares at Chebyshev nodes, which is close to minimax (60-digit
mpmath). Coefficients are rounded to float32 one after the other, lowest power first, and the rest is fitted again
around the rounded ones.

    python tools/fit_vmath.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import mpmath
from mpmath import mp, mpf

mp.dps = 60
NODES = 101
Real = Callable[[mpf], mpf]


def float32(x: mpf) -> float:
    return struct.unpack("f", struct.pack("f", float(x)))[0]


def solve(f: Real, weight: Real, powers: Iterable[int], nodes: list[mpf]) -> list[mpf]:
    """Coefficients of ``sum c_p x**p`` that minimise ``sum (weight (f - sum))**2`` over the nodes."""
    powers = list(powers)
    rows = mpmath.matrix([[weight(x) * x**p for p in powers] for x in nodes])
    values = mpmath.matrix([weight(x) * f(x) for x in nodes])
    return list(mpmath.lu_solve(rows.T * rows, rows.T * values))


def fit(
    name: str, f: Real, weight: Real, degree: int, low: float, high: float, rounded: Callable[[mpf], float] = float32
) -> None:
    middle, half = (mpf(low) + mpf(high)) / 2, (mpf(high) - mpf(low)) / 2
    nodes = [middle - half * mpmath.cos(mpmath.pi * (2 * i + 1) / (2 * NODES)) for i in range(NODES)]
    done: list[float] = []
    for power in range(degree + 1):

        def rest(x: mpf) -> mpf:
            return f(x) - sum(c * x**p for p, c in enumerate(done))

        done.append(rounded(solve(rest, weight, range(power, degree + 1), nodes)[0]))
    worst = max(abs(weight(x) * (f(x) - sum(c * x**p for p, c in enumerate(done)))) for x in nodes)
    print(f"{name}: relative error {float(worst):.3g} = {float(worst * 2**24):.3g} * 2**-24")
    for power, c in enumerate(done):
        print(f"  {power}: {c:.{17 if rounded is float else 9}g}")


def main() -> None:
    half = float(mpmath.log(2) / 2) * 1.0001
    # exp(r) = 1 + r + r^2 q(r)
    fit("exp", lambda r: (mpmath.exp(r) - 1 - r) / r**2, lambda r: r**2 / mpmath.exp(r), 4, -half, half)
    # log(1 + f) = f - f^2/2 + f^3 p(f)
    fit("log", lambda f: (mpmath.log1p(f) - f + f**2 / 2) / f**3, lambda f: f**3 / mpmath.log1p(f), 8, -0.25, 0.5)
    # tanh(x) = x + x^3 p(x^2), in y = x^2
    fit(
        "tanh",
        lambda y: (mpmath.tanh(mpmath.sqrt(y)) / mpmath.sqrt(y) - 1) / y,
        lambda y: y * mpmath.sqrt(y) / mpmath.tanh(mpmath.sqrt(y)),
        6,
        1e-9,
        0.9**2,
    )
    # atan(x) = x + x^3 p(x^2)
    fit(
        "atan",
        lambda y: (mpmath.atan(mpmath.sqrt(y)) / mpmath.sqrt(y) - 1) / y,
        lambda y: y * mpmath.sqrt(y) / mpmath.atan(mpmath.sqrt(y)),
        8,
        1e-9,
        1,
    )
    # sin(2 pi r) = r (2 pi + r^2 p(r^2)), cos(2 pi r) = 1 + r^2 p(r^2)
    tau = 2 * mpmath.pi
    for name, degree, rounded in (("float32", 3, float32), ("float64", 6, float)):
        fit(
            f"sin {name}",
            lambda y: (mpmath.sin(tau * mpmath.sqrt(y)) / mpmath.sqrt(y) - tau) / y,
            lambda y: y * mpmath.sqrt(y) / mpmath.sin(tau * mpmath.sqrt(y)),
            degree,
            1e-9,
            1 / 64,
            rounded,
        )
        fit(
            f"cos {name}",
            lambda y: (mpmath.cos(tau * mpmath.sqrt(y)) - 1) / y,
            lambda y: y / mpmath.cos(tau * mpmath.sqrt(y)),
            degree,
            1e-9,
            1 / 64,
            rounded,
        )
    for name, value in (("log2(e)", 1 / mpmath.log(2)), ("2 pi", tau), ("pi / 2", mpmath.pi / 2)):
        high = float32(value)
        print(f"{name}: {high:.9g} = {high.hex()}, rest {float32(value - high):.9g}")
    high = float(mpmath.floor(mpmath.log(2) * 2**15)) / 2**15  # 15 bits: n * high is exact for |n| < 2**9
    print(f"ln 2: {high:.9g} = {high.hex()}, rest {float32(mpmath.log(2) - high):.9g}")


if __name__ == "__main__":
    main()
