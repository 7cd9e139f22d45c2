"""Every method by name. MetAug and its ablations compose an objective with the MAG; they have no class of their own."""

from metaug_core.config import Config, ConfigError
from metaug_core.methods import modifiers, untrained
from metaug_core.methods.base import Composition, Context, Method
from metaug_core.methods.baselines.adco import AdCo
from metaug_core.methods.baselines.barlow import BarlowTwins
from metaug_core.methods.baselines.bigan import BiGAN
from metaug_core.methods.baselines.byol import BYOL
from metaug_core.methods.baselines.cpc import CPC
from metaug_core.methods.baselines.dacl import DACL
from metaug_core.methods.baselines.dim import DIM
from metaug_core.methods.baselines.imix import IMix
from metaug_core.methods.baselines.infomin import InfoMin
from metaug_core.methods.baselines.looc import LooC
from metaug_core.methods.baselines.moco import MoCo
from metaug_core.methods.baselines.nat import NAT
from metaug_core.methods.baselines.nnclr import NNCLR
from metaug_core.methods.baselines.simclr import SimCLR
from metaug_core.methods.baselines.simsiam import SimSiam
from metaug_core.methods.baselines.splitbrain import SplitBrain
from metaug_core.methods.baselines.supervised import Supervised
from metaug_core.methods.baselines.swav import SwAV
from metaug_core.methods.baselines.vicreg import VICReg
from metaug_core.methods.baselines.wmse import WMSE
from metaug_core.methods.feature_transformation import with_ft
from metaug_core.methods.hallucinator import with_hallucinator
from metaug_core.methods.metaug import MetAug, with_mag
from metaug_core.methods.multiview import CMC, OUCL
from metaug_core.methods.synthetic_negatives import with_mochi, with_synco
from metaug_core.registry import METHODS, MODIFIERS

__all__ = ["CMC", "LATER", "METHODS", "MODIFIERS", "OUCL", "Composition", "Context", "MetAug", "Method", "SimCLR", "Supervised",
           "build", "with_mag"]  # fmt: skip

METAUG = "Li et al. 2022"
MODIFIERS.register_own(
    {
        "mag": with_mag,
        "oucl": modifiers.with_oucl,
        "debiased": modifiers.with_debiased,
        "hard": modifiers.with_hard,
        "randaugment": modifiers.with_randaugment,
        "dcl": modifiers.with_dcl,
        "ft": with_ft,
        "hallucinator": with_hallucinator,
        "mochi": with_mochi,
        "synco": with_synco,
        "noise": untrained.with_noise,
        "dropout": untrained.with_dropout,
    }
)
METHODS.register_own(
    {  # in the order of Table 1
        "supervised": Supervised,
        "bigan": BiGAN,
        "nat": NAT,
        "dim": DIM,
        "splitbrain": SplitBrain,
        "cpc": CPC,
        "swav": SwAV,
        "simclr": SimCLR,
        "cmc": CMC,
        "moco": MoCo,
        "simsiam": SimSiam,
        "infomin": InfoMin,
        "byol": BYOL,
        "barlow": BarlowTwins,
        "nnclr": NNCLR,
        "dacl": DACL,
        "looc": LooC,
        "wmse": WMSE,
        "metaug-only-oucl": OUCL,
        "metaug-only-mag": with_mag(CMC).rename("MetAug (only MAG)", METAUG),
        "metaug": with_mag(OUCL).rename("MetAug", METAUG),
        "metaug-nnclr": with_mag(modifiers.with_oucl(NNCLR)).rename("MetAug* (on NNCLR)", METAUG),
    }
)
# Composed names in the paper's tables. Any other, such as `simclr+hard+mag`, works without an entry here.
COMPOSED = (
    "swav+hard",
    "simclr+hard",
    "cmc+hard",
    "simclr+debiased",
    "cmc+debiased",
    "cmc+randaugment",
    "metaug+randaugment",
)
METHODS.register_own({name: METHODS[name] for name in COMPOSED})
# What came after the paper or beside it: no row of its tables.
LATER = {
    "simclr+dcl": METHODS["simclr+dcl"],
    "cmc+dcl": METHODS["cmc+dcl"],
    "ft": with_ft(MoCo).rename("FT", "Zhu et al. 2021"),
    "adco": AdCo,
    "hallucinator": with_hallucinator(MoCo).rename("Hallucinator", "Wu et al. 2023"),
    "mochi": with_mochi(MoCo).rename("MoCHi", "Kalantidis et al. 2020"),
    "synco": with_synco(MoCo).rename("SynCo", "Giakoumoglou and Stathaki 2024"),
    "vicreg": VICReg,
    "imix": IMix,
    "cmc+noise": METHODS["cmc+noise"],
    "cmc+dropout": METHODS["cmc+dropout"],
}
METHODS.register_own(LATER)


def build(config: Config) -> Method:
    """Create the method that config names. Raises ConfigError if it has too few views."""
    method = METHODS[config.method](config)
    least = method.description.minimum_views
    if len(config.views) < least:
        raise ConfigError(f"method {config.method!r} contrasts at least {least} views, got {', '.join(config.views)}")
    return method
