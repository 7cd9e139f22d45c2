"""The preset `authors` against the authors' published code, written out here pair by pair (float64).

- A whole step is theirs: each term of the loss in the regular step, the look-ahead, both optimisers, the bank's three writes.
- The MAG's rate is constant, warm-up included, while the encoders' changes; its weight decay is SGD's, by hand.

Where the published code differs all the same is in docs/paper.md: here one draw and one reading of the bank serve a whole step,
draws leave the minibatch out, and margins are constants.
"""

from copy import deepcopy

import pytest
import torch
from tiny import start_state
from torch.func import functional_call
from torch.nn import functional as F

from metaug_core import preset
from metaug_core.data import datasets
from metaug_core.training import state
from metaug_core.training.loop import minibatches
from metaug_core.training.step import draw, train_step

BATCH, K = 4, 3


def d(past, feature):
    return (1 + past @ feature) / 2


def contrast(features, entries, drawn, own):
    """Their six columns of each image: {(v, u): (positive, K negatives)}, view v of the image against entries of view u."""
    pairs = [(v, u) for v in range(3) for u in range(3) if u != v]
    return [
        {(v, u): (d(entries[u, own[i]], features[v, i]), d(entries[u, drawn[i]], features[v, i])) for v, u in pairs}
        for i in range(features.shape[1])
    ]


def criterion(columns):
    """softplus(logsumexp(16 d-) + logsumexp(-16 d+)) / 16 * 16 for each image, over its six columns; mean over the images."""
    of_images = []
    for image in columns:
        total = sum(torch.exp(16 * (row - p)).sum() for p, _ in image.values() for _, row in image.values())
        of_images.append(torch.log1p(total) / 16 * 16)
    return sum(of_images) / len(of_images)


def regularisation(swapped, original):
    """Their R_sigma: of each swapped set the four columns that touch the swapped view, twelve in all, six of them without z~."""
    near, far = [], []
    for i, image in enumerate(original):
        hardest_positive = min(p.item() for p, _ in image.values())
        hardest_negative = max(row.max().item() for _, row in image.values())
        low, high = sorted([hardest_positive, hardest_negative])  # margin "large"
        for view, columns in enumerate(swapped):
            touching = [column for pair, column in columns[i].items() if view in pair]
            assert len(touching) == 4
            near += [(p - low).clamp(min=0) for p, _ in touching]
            far += [(high - row).clamp(min=0).mean() for _, row in touching]
    assert len(near) == 12 * len(original)
    return 1e-4 * sum(near) / len(near) + sum(far) / len(far)


def their_terms(z, augmented, delta, alpha, bank):
    original = contrast(z, *bank)
    swapped = [contrast(torch.stack([augmented[v] if v == w else z[v] for v in range(3)]), *bank) for w in range(3)]
    augmented_loss = sum(criterion(columns) for columns in [*swapped, contrast(augmented, *bank)])
    return {
        "loss_original": criterion(original),
        "loss_augmented": delta * augmented_loss,
        "loss_margin": alpha * regularisation(swapped, original),
    }


def their_sgd(parameters, gradients):
    """The first step of SGD 0.03 with weight decay 1e-4: the momentum starts as the gradient."""
    return {name: (p - 0.03 * (gradients[name] + 1e-4 * p)).detach() for name, p in parameters.items()}


def started(**changes):
    """The first state of `authors` in float64, on 16 px."""
    small = {"image_size": 16, "width": 0.05, "feature_dim": 6, "mag_hidden": 12, "bank_negatives": K}
    config = preset("authors", dataset="tiny", batch_size=BATCH, device="cpu", workers=0, **small, **changes)
    s = state.create(config, datasets.load(config, "cpu"), "cpu")
    for module in (s.networks, s.mag, s.memory):
        assert module is not None
        module.double()
    in_single = s.method.views
    s.method.views = lambda *arguments: [view.double() for view in in_single(*arguments)]
    return s


@pytest.mark.parametrize("weights", [{}, {"delta": 0.4, "alpha": 30.0}], ids=["published", "visible"])
def test_a_step_is_the_authors_step(weights):
    """With the published delta and alpha each term is compared at its own size; the second case makes the gradients see them."""
    s = started(**weights)
    indices = torch.tensor([3, 14, 60, 7])
    networks, mag, entries = deepcopy(s.networks), deepcopy(s.mag), deepcopy(s.memory.entries)
    before = {role: generator.get_state() for role, generator in s.generators.items()}
    views, context = draw(s, s.images.pixels[indices], indices)
    for role, generator in s.generators.items():
        generator.set_state(before[role])
    metrics = train_step(s, s.images.pixels[indices], indices, log=False)

    bank = entries.clone(), context.drawn, indices
    assert bank[1].shape == (BATCH, K)
    omega = dict(mag.named_parameters())
    written = []

    def terms_at(theta):
        z = functional_call(networks, theta, (views,))
        written.append(z.detach())
        return their_terms(z, functional_call(mag, omega, (z,)), s.config.delta, s.config.alpha, bank)

    def gradients(value, parameters, **options):
        return dict(zip(parameters, torch.autograd.grad(value, [*parameters.values()], **options), strict=True))

    theta = dict(networks.named_parameters())
    terms = terms_at(theta)
    for name, term in terms.items():
        assert float(metrics[name]) == pytest.approx(term.item(), rel=1e-10), name
        assert term.item() > 0
    theta = their_sgd(theta, gradients(sum(terms.values()), theta))
    for name, parameter in s.networks.named_parameters():
        torch.testing.assert_close(parameter, theta[name], rtol=1e-9, atol=1e-11)

    theta = {name: p.requires_grad_() for name, p in theta.items()}
    inner = gradients(sum(terms_at(theta).values()), theta, create_graph=True)
    ahead = {name: p - 1e-3 * inner[name] for name, p in theta.items()}
    outer = sum(terms_at(ahead).values())
    assert float(metrics["loss_ahead"]) == pytest.approx(outer.item(), rel=1e-10)
    meta_gradient = gradients(outer, omega)
    for name, p in their_sgd(omega, meta_gradient).items():
        moved, wanted = s.mag.get_parameter(name) - omega[name], p - omega[name]
        torch.testing.assert_close(moved, wanted, rtol=1e-8, atol=1e-14)  # of steps of at least 1e-9
    assert float(meta_gradient["last.weight"].abs().max()) > 1e-7

    for z in written:  # in the regular step, before the look-ahead and at theta'
        entries[:, indices] = F.normalize(0.5 * entries[:, indices] + 0.5 * z, dim=-1)
    torch.testing.assert_close(s.memory.entries, entries, rtol=0, atol=1e-10)


def test_the_mags_rate_is_constant_and_its_decay_is_sgds_by_hand():
    """delta and alpha are 0, so that the decay alone moves the MAG: 5 steps a pass, the encoders' rate falls after the first."""
    recipe = {
        "optimiser": "sgd",
        "lr": 0.02,
        "lr_schedule": "step",
        "lr_steps": (1,),
        "warmup_epochs": 0.4,
        "delta": 0.0,
    }
    of_mag = {
        "mag_optimiser": "sgd",
        "mag_lr": 0.5,
        "mag_lr_schedule": "constant",
        "mag_weight_decay": 0.1,
        "alpha": 0.0,
    }
    s = start_state(**recipe, **of_mag)
    start = {name: p.detach().clone() for name, p in s.omega.items()}
    rates, factor, velocity = [], 1.0, 0.0
    for batch in minibatches(s):
        rates.append((s.optimiser.param_groups[0]["lr"], s.mag_optimiser.param_groups[0]["lr"]))
        train_step(s, *batch)
        velocity = 0.9 * velocity + 0.1 * factor
        factor -= 0.5 * velocity
        s.count_step()
        if s.position == s.steps_per_epoch:
            s.end_pass()
    assert [mag for _, mag in rates] == [0.5] * 10
    assert [lr / 0.02 for lr, _ in rates] == pytest.approx([0.001 / 0.4, 0.201 / 0.4, 1, 1, 1, *[0.1] * 5])
    for name, p in s.omega.items():
        torch.testing.assert_close(p.detach(), factor * start[name], rtol=1e-5, atol=1e-7)
    assert -0.5 < factor < 0.5
