"""Heads against lightly's of the same seed, and a package that runs where lightly is not installed."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from lightly.models.modules import heads as lightlys
from torch import nn

from metaug_core import Config
from metaug_core.methods.baselines import barlow, byol, nnclr, simsiam, swav
from metaug_core.networks import heads

INPUTS, HIDDEN, OUTPUTS, NARROW = 24, 16, 10, 6


def settings(method: str) -> Config:
    return Config(method=method, width=0.1, feature_dim=OUTPUTS, head_hidden=HIDDEN, predictor_hidden=NARROW)


def simclrs() -> nn.Module:
    return heads.head(INPUTS, Config(feature_dim=OUTPUTS, head="mlp-bn"))


def swavs() -> nn.Module:
    """The one that is made inside its networks; how many numbers it takes in is the encoder's."""
    return swav.Clustered(settings("swav")).features.heads["RGB"]


WIDE = INPUTS, HIDDEN, OUTPUTS
BACK = OUTPUTS, NARROW, OUTPUTS
HEADS: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], tuple[int, int, int]]] = {
    "SimCLR": (simclrs, lightlys.SimCLRProjectionHead, (INPUTS, INPUTS, OUTPUTS)),
    "Barlow Twins": (
        lambda: barlow.projector(INPUTS, settings("barlow")),
        lightlys.BarlowTwinsProjectionHead,
        WIDE,
    ),
    "BYOL": (lambda: byol.projector(INPUTS, settings("byol")), lightlys.BYOLProjectionHead, WIDE),
    "BYOL, predictor": (lambda: byol.predictor(settings("byol")), lightlys.BYOLPredictionHead, BACK),
    "NNCLR": (lambda: nnclr.projector(INPUTS, settings("nnclr")), lightlys.NNCLRProjectionHead, WIDE),
    "NNCLR, predictor": (lambda: nnclr.predictor(settings("nnclr")), lightlys.NNCLRPredictionHead, BACK),
    # lightly's projector of SimSiam has no weights in its last BatchNorm, the paper's has them, as NNCLR's.
    "SimSiam": (lambda: simsiam.projector(INPUTS, settings("simsiam")), lightlys.NNCLRProjectionHead, WIDE),
    "SimSiam, predictor": (lambda: simsiam.predictor(settings("simsiam")), lightlys.SimSiamPredictionHead, BACK),
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return build().double()


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_lightlys_for_a_seed(name):
    ours, theirs, sizes = HEADS[name]
    own, reference = seeded(ours), seeded(lambda: theirs(*sizes))
    x = torch.randn(9, sizes[0], dtype=torch.float64)
    for head in (own, reference):
        head(x)  # running statistics that are no longer the initial ones
    for training in (True, False):
        own.train(training)
        reference.train(training)
        torch.testing.assert_close(own(x), reference(x), rtol=0, atol=0)


def test_swavs_head_is_lightlys_whose_weights_it_takes():
    own = swavs().double()
    inputs = own[0].in_features
    reference = lightlys.SwaVProjectionHead(inputs, HIDDEN, OUTPUTS).double()
    own.load_state_dict({name.removeprefix("layers."): value for name, value in reference.state_dict().items()})
    x = torch.randn(9, inputs, dtype=torch.float64)
    torch.testing.assert_close(own(x), reference(x), rtol=0, atol=0)


@pytest.mark.slow
def test_no_room_needs_lightly():
    hidden = (
        "import importlib, pkgutil, sys; sys.modules['lightly'] = None; import metaug_core; "
        "[importlib.import_module(room.name) for room in pkgutil.walk_packages(metaug_core.__path__, 'metaug_core.')]"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
