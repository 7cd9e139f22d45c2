"""Checks of the walkthrough's exercises: the reader's function on random cases, beside the formula written out in float64.

    check.oucl(my_oucl)  # in a cell: one sentence, which says what is right, what is missing or what looks wrong

A check never raises, so a notebook with unfinished exercises runs to its end. Each exercise knows a few typical mistakes: an answer
that equals one of them on every case gets its hint.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

CASES = 20
Function = Callable[..., Any]  # the case's arguments -> a tensor or several


@dataclass(frozen=True)
class Result:
    """What a check found. A cell shows the message."""

    passed: bool
    message: str

    def __repr__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Exercise:
    """One function to write. draw: a random case, the arguments by name. reference: the right answer. mistakes: a hint and the
    function that needs it."""

    name: str
    draw: Callable[[Generator], dict[str, Any]]
    reference: Function
    mistakes: Mapping[str, Function]
    agrees_with: str

    def __call__(self, function: Function) -> Result:
        """Check `function`, which takes the arguments of `draw` in their order."""
        generator = torch.Generator().manual_seed(0)
        cases = [self.draw(generator) for _ in range(CASES)]
        try:
            answers = [function(*case.values()) for case in cases]
        except Exception as error:
            shapes = ", ".join(f"{key} {tuple(x.shape)}" for key, x in cases[0].items() if isinstance(x, Tensor))
            return Result(False, f"✗ {self.name} raised {type(error).__name__}: {error}. The arguments were {shapes}.")
        if any(answer is None or answer is ... for answer in answers):
            return Result(False, f"… {self.name} is not written yet: it returns nothing. The page goes on without it.")
        wrong = find_difference(cases, answers, self.reference)
        if wrong is None:
            return Result(True, f"✓ {self.name} agrees with {self.agrees_with} in {CASES} random cases.")
        for hint, mistaken in self.mistakes.items():
            if find_difference(cases, answers, mistaken) is None:
                return Result(False, f"✗ {self.name}: {hint}")
        case, answer = cases[wrong], answers[wrong]
        expected = self.reference(*case.values())
        numbers = ", ".join(f"{key} = {x:.3g}" for key, x in case.items() if isinstance(x, float))
        given = f" with {numbers}" if numbers else ""
        return Result(False, f"✗ {self.name}{given} should give {describe(expected)}, but gives {describe(answer)}.")


def list_tensors(answer: Any) -> list[Tensor]:
    """A number, a tensor, or several of them, as float64 tensors. TypeError or ValueError for anything else."""
    parts = answer if isinstance(answer, tuple | list) else (answer,)
    return [torch.as_tensor(part).detach().double() for part in parts]


def find_difference(cases: list[dict[str, Any]], answers: list[Any], function: Function) -> int | None:
    """The number of the first case whose answer is not, to six digits, what the function gives; None if there is none."""
    each = enumerate(zip(cases, answers, strict=True))
    return next((k for k, (case, answer) in each if not agree(answer, function(*case.values()))), None)


def agree(answer: Any, expected: Any) -> bool:
    """Whether an answer has the expected shapes and, to six digits, values."""
    try:
        mine, theirs = list_tensors(answer), list_tensors(expected)
    except (TypeError, ValueError, RuntimeError):
        return False
    if [x.shape for x in mine] != [x.shape for x in theirs]:
        return False
    return all(torch.allclose(x, y, rtol=1e-6, atol=1e-7) for x, y in zip(mine, theirs, strict=True))


def describe(answer: Any) -> str:
    """An answer in few words: its numbers if there are few, else its shape."""
    try:
        parts = list_tensors(answer)
    except (TypeError, ValueError, RuntimeError):
        return f"a {type(answer).__name__}"
    texts = []
    for part in parts:
        numbers = ", ".join(f"{x:.4g}" for x in part.flatten()[:3].tolist())
        more = ", ..." if part.numel() > 3 else ""
        texts.append(numbers if part.dim() == 0 else f"[{numbers}{more}] of shape {tuple(part.shape)}")
    return " and ".join(texts)


def _uniform(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _count(generator: Generator) -> int:
    return int(torch.randint(2, 7, (), generator=generator))


def _draw_pairs(generator: Generator) -> dict[str, Any]:
    """Similarities d in [0, 1] of up to six anchors, positives (A, P) and negatives (A, N)."""
    anchors, positives, negatives = (_count(generator) for _ in range(3))
    return {"positives": _uniform(generator, anchors, positives), "negatives": _uniform(generator, anchors, negatives)}


# --- similarities
def _draw_features(generator: Generator) -> dict[str, Any]:
    shape = _count(generator), _count(generator)
    return {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name in ("first", "second")}


def _similarities(first: Tensor, second: Tensor) -> Tensor:
    """(N, D), (N, D) -> (N, N), pair by pair."""
    rows = [torch.stack([(1 + a @ b / (a.norm() * b.norm())) / 2 for b in second]) for a in first]
    return torch.stack(rows)


similarities = Exercise(
    "similarities",
    _draw_features,
    _similarities,
    {
        "bring the features to unit length first: a long feature is not a similar one.": lambda a, b: (1 + a @ b.T) / 2,
        "these are cosines, in [-1, 1]. Shift and scale them into [0, 1].": lambda a, b: 2 * _similarities(a, b) - 1,
        "rows and columns are swapped: row i belongs to feature i of the first view.": lambda a, b: (
            _similarities(a, b).T
        ),
        "unit length is for each feature (dim=1), not for each column of numbers.": lambda a, b: (
            (1 + F.normalize(a, dim=0) @ F.normalize(b, dim=0).T) / 2
        ),
    },
    "the cosine of every single pair",
)


# --- InfoNCE
def _draw_anchors(generator: Generator) -> dict[str, Any]:
    anchors = _count(generator)
    cosines = 2 * _uniform(generator, anchors, 1 + _count(generator)) - 1
    return {
        "positives": cosines[:, :1],
        "negatives": cosines[:, 1:],
        "temperature": 0.1 + float(_uniform(generator, 1)),
    }


def _info_nce_terms(positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The terms of the mean, (A, 1)."""
    above = torch.exp(positives / temperature)
    return -torch.log(above / (above + torch.exp(negatives / temperature).sum(1, keepdim=True)))


info_nce = Exercise(
    "info_nce",
    _draw_anchors,
    lambda p, n, t: _info_nce_terms(p, n, t).mean(),
    {
        "the sign is wrong: a loss falls when the positive wins.": lambda p, n, t: -_info_nce_terms(p, n, t).mean(),
        "take the mean over the anchors, not their sum.": lambda p, n, t: _info_nce_terms(p, n, t).sum(),
        "one number, please: take the mean over the anchors.": _info_nce_terms,
        "one number for each anchor is almost it: take their mean.": lambda p, n, t: _info_nce_terms(p, n, t)[:, 0],
        "the positive belongs into the denominator, too.": lambda p, n, t: (
            torch.exp(n / t).sum(1, keepdim=True).log() - p / t
        ).mean(),
        "the temperature is missing: divide every similarity by it.": lambda p, n, t: _info_nce_terms(p, n, 1).mean(),
        "divide by the temperature, do not multiply.": lambda p, n, t: _info_nce_terms(p, n, 1 / t).mean(),
        "sum over the negatives in the denominator, not their mean.": lambda p, n, t: torch.log1p(
            torch.exp((n - p) / t).mean(1)
        ).mean(),
    },
    "the fraction of eq. 1",
)


# --- OUCL
def _draw_oucl(generator: Generator) -> dict[str, Any]:
    beta, gamma = (2 + 14 * float(_uniform(generator, 1)), 0.1 + 0.4 * float(_uniform(generator, 1)))
    return {**_draw_pairs(generator), "beta": beta, "gamma": gamma}


def _oucl(positives: Tensor, negatives: Tensor, beta: float, gamma: float, gammas: float = -2, inside: str = "sum",
          one: float = 1.0, optimum: float = 1.0, outside: str = "mean") -> Tensor:  # fmt: skip
    """Eq. 10 as its double sum. The further arguments change one piece of it, for the mistakes."""
    losses = []
    for d_pos, d_neg in zip(positives, negatives, strict=True):
        terms = [torch.exp(beta * ((p - optimum) ** 2 + n**2 + gammas * gamma**2)) for p in d_pos for n in d_neg]
        losses.append(torch.log(one + getattr(torch.stack(terms), inside)()) / beta)
    return getattr(torch.stack(losses), outside)()


oucl = Exercise(
    "oucl",
    _draw_oucl,
    _oucl,
    {
        "the sign of the loss is wrong.": lambda *a: -_oucl(*a),
        "the sign of 2γ² is wrong: the margin makes the goal easier to reach.": lambda *a: _oucl(*a, gammas=2),
        "the margin enters twice: 2γ², not γ².": lambda *a: _oucl(*a, gammas=-1),
        "the margin 2γ² is missing.": lambda *a: _oucl(*a, gammas=0),
        "the factor 1/β in front is missing.": lambda p, n, beta, gamma: beta * _oucl(p, n, beta, gamma),
        "the pairs are summed inside the logarithm, not averaged.": lambda *a: _oucl(*a, inside="mean"),
        "take the mean over the anchors, not their sum.": lambda *a: _oucl(*a, outside="sum"),
        "the 1 inside the logarithm is missing: without it the loss has no floor.": lambda *a: _oucl(*a, one=0.0),
        "a positive has its optimum at 1: its distance is d⁺ - 1.": lambda *a: _oucl(*a, optimum=0.0),
    },
    "the double sum over all pairs",
)


# --- the weights Gamma
def _draw_weights(generator: Generator) -> dict[str, Any]:
    gamma = 0.4 * float(_uniform(generator, 1)) - 0.5  # below 0: some pairs are past their optimum
    return {**_draw_pairs(generator), "gamma": gamma, "phi_dec": 1 + 5 * float(_uniform(generator, 1))}


def _weights(positives: Tensor, negatives: Tensor, gamma: float, phi_dec: float) -> tuple[Tensor, Tensor]:
    def each(values: Tensor, distance: Callable[[float], float]) -> Tensor:
        return torch.tensor([[max(distance(x), 0.0) / phi_dec for x in row] for row in values.tolist()]).to(values)

    return each(positives, lambda d: 1 + gamma - d), each(negatives, lambda d: d + gamma)


weights = Exercise(
    "weights",
    _draw_weights,
    _weights,
    {
        "the order is (Γ⁺, Γ⁻).": lambda *a: _weights(*a)[::-1],
        "Γ is never negative: cut it off at 0.": lambda p, n, gamma, phi: ((1 + gamma - p) / phi, (n + gamma) / phi),
        "φ_dec divides both weights, and it is missing.": lambda p, n, gamma, phi: _weights(p, n, gamma, 1.0),
        "φ_dec divides, it does not multiply.": lambda p, n, gamma, phi: _weights(p, n, gamma, 1 / phi),
        "φ_dec belongs to Γ⁻ as well.": lambda p, n, gamma, phi: (
            _weights(p, n, gamma, phi)[0], _weights(p, n, gamma, 1.0)[1]),
        "the signs are wrong: Γ⁺ grows as d⁺ falls, Γ⁻ grows with d⁻.": lambda p, n, gamma, phi: (
            (p - 1 - gamma).clamp(min=0) / phi, (-gamma - n).clamp(min=0) / phi),
        "the optima are 1 + γ and -γ; you took 1 and 0.": lambda p, n, gamma, phi: _weights(p, n, 0.0, phi),
        "the optima are 1 + γ and -γ; you took 1 - γ and γ.": lambda p, n, gamma, phi: _weights(p, n, -gamma, phi),
    },
    "eq. 9, pair by pair",
)  # fmt: skip


# --- R_sigma
def _draw_margins(generator: Generator) -> dict[str, Any]:
    original, augmented = _draw_pairs(generator), _draw_pairs(generator)
    return {"z_positives": original["positives"], "z_negatives": original["negatives"], **augmented}


def _r_sigma(z_positives: Tensor, z_negatives: Tensor, positives: Tensor, negatives: Tensor, kind: str = "large",
             average: str = "mean", above: int = 1, clamp: float = 0.0) -> Tensor:  # fmt: skip
    """Eq. 5 with a margin of eq. 4. The further arguments change one piece of it, for the mistakes."""
    ends = sorted((z_positives.min().item(), z_negatives.max().item()))
    plus, minus = {"large": ends, "small": ends[::-1], "medium": [sum(ends) / 2] * 2}[kind]
    too_near = (above * (positives - plus)).clamp(min=clamp)
    too_far = (above * (minus - negatives)).clamp(min=clamp)
    return getattr(too_near, average)() + getattr(too_far, average)()


r_sigma = Exercise(
    "r_sigma",
    _draw_margins,
    _r_sigma,
    {
        "this is the margin Small. For Large, σ⁺ is the smaller of the two similarities.": lambda *a: (
            _r_sigma(*a, kind="small")
        ),
        "this is the margin Medium: Large takes the two similarities themselves.": lambda *a: _r_sigma(*a, kind="medium"),
        "take means over the pairs, not sums.": lambda *a: _r_sigma(*a, average="sum"),
        "the signs are wrong: a positive is punished above σ⁺, a negative below σ⁻.": lambda *a: _r_sigma(*a, above=-1),
        "the hinge [...]₊ is missing: cut both parts off at 0.": lambda *a: _r_sigma(*a, clamp=-float("inf")),
        "the margins come from the original pairs, not from the augmented ones.": lambda zp, zn, p, n: _r_sigma(p, n, p, n),
        "the part of the negatives is missing.": lambda zp, zn, p, n: (
            (p - min(zp.min(), zn.max())).clamp(min=0).mean()),
    },
    "the hinges of eq. 5, with the margin Large",
)  # fmt: skip


# --- the MAG's gradient
def _draw_look_ahead(generator: Generator) -> dict[str, Any]:
    mixing, shift = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(theta: Tensor, omega: Tensor) -> Tensor:
        return torch.tanh(theta[:, None] * mixing * omega + shift).sum() + (theta**2).sum() * (omega**2).sum() / 10

    theta, omega = (torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for n in (4, 3))
    return {"loss": loss, "theta": theta, "omega": omega, "lr": 0.1 + 0.4 * float(_uniform(generator, 1))}


def _mag_gradient(loss: Function, theta: Tensor, omega: Tensor, lr: float, shift: float = -1.0) -> Tensor:
    """The gradient of eq. 6 by central differences of the loss after the next step: (W,), of omega's shape."""

    def measure(omega: Tensor) -> Tensor:
        return loss(theta + shift * lr * torch.func.grad(loss)(theta, omega), omega).detach()

    steps = 1e-5 * torch.eye(len(omega), dtype=omega.dtype)
    return torch.stack([(measure(omega + step) - measure(omega - step)) / 2e-5 for step in steps])


def _direct_part(loss: Function, theta: Tensor, omega: Tensor, lr: float) -> Tensor:
    ahead = theta - lr * torch.func.grad(loss)(theta, omega)
    return torch.func.grad(loss, argnums=1)(ahead.detach(), omega)


mag_gradient = Exercise(
    "mag_gradient",
    _draw_look_ahead,
    _mag_gradient,
    {
        "this is the direct part alone. θ' depends on ω: keep its step in the graph with create_graph=True.": _direct_part,
        "this is the mixed part alone. Add the direct one.": lambda *a: _mag_gradient(*a) - _direct_part(*a),
        "there is no look-ahead in it: take the loss at θ', not at θ.": lambda loss, theta, omega, lr: torch.func.grad(
            loss, argnums=1
        )(theta, omega),
        "the step climbs: θ' = θ minus the rate times the gradient.": lambda *a: _mag_gradient(*a, shift=1.0),
        "the rate is missing in the step.": lambda loss, theta, omega, lr: _mag_gradient(loss, theta, omega, 1.0),
        "the sign is wrong: this is a gradient, not a step.": lambda *a: -_mag_gradient(*a),
    },
    "finite differences of the loss after the step",
)
