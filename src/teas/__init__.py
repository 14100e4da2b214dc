"""teas: temporal-wise adaptive spiking networks. Every layer of a spiking network runs its own time window."""

from teas._version import __version__
from teas.adapt.activity import LayerActivity, measure_activity
from teas.adapt.training import Adjustment, Stage, run_stage
from teas.adapt.vulnerability import measure_damage
from teas.ann.convert import Conversion, LayerReport, convert
from teas.engine import choose_engine
from teas.errors import TeasError
from teas.exchange.native import load_network, save_network
from teas.spiking.network import LayerRecord, Output, Semantics, SpikingNetwork
from teas.spiking.neuron import IF, LIF
from teas.spiking.time_windows import TimeWindows

__all__ = [
    "IF",
    "LIF",
    "Adjustment",
    "Conversion",
    "LayerActivity",
    "LayerRecord",
    "LayerReport",
    "Output",
    "Semantics",
    "SpikingNetwork",
    "Stage",
    "TeasError",
    "TimeWindows",
    "__version__",
    "choose_engine",
    "convert",
    "load_network",
    "measure_activity",
    "measure_damage",
    "run_stage",
    "save_network",
]
