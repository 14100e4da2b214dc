"""teas: temporal-wise adaptive spiking networks. Every layer of a spiking network runs its own time window."""

from teas._version import __version__
from teas.adapt.activity import LayerActivity, measure_activity
from teas.adapt.adapted import adapt
from teas.adapt.policy import Calibration, Cascade, Policy, calibrate_policy, error_bound, fit_temperature
from teas.adapt.schedule import Adjustment
from teas.adapt.training import Stage, run_stage
from teas.adapt.vulnerability import measure_damage
from teas.ann.convert import Conversion, LayerReport, convert
from teas.ann.folding import fold_batch_norms
from teas.ann.learned_windows import WindowLearner
from teas.ann.many_windows import Together, recalibrate
from teas.engine import choose_engine
from teas.errors import TeasError
from teas.exchange.events import bin_events
from teas.exchange.folded import fold_amplitudes
from teas.exchange.native import load_network, save_network
from teas.exchange.nir_export import to_nir
from teas.exchange.nir_import import from_nir
from teas.exchange.norse import from_norse
from teas.exchange.onnx_export import to_onnx
from teas.exchange.sinabs import from_sinabs
from teas.exchange.snntorch import from_snntorch
from teas.exchange.spikingjelly import from_spikingjelly, to_spikingjelly
from teas.spiking.network import SpikingNetwork
from teas.spiking.neuron import IF, LIF
from teas.spiking.radix import to_radix
from teas.spiking.record import LayerRecord, Output
from teas.spiking.semantics import Semantics
from teas.spiking.time_windows import TimeWindows

__all__ = [
    "IF",
    "LIF",
    "Adjustment",
    "Calibration",
    "Cascade",
    "Conversion",
    "LayerActivity",
    "LayerRecord",
    "LayerReport",
    "Output",
    "Policy",
    "Semantics",
    "SpikingNetwork",
    "Stage",
    "TeasError",
    "TimeWindows",
    "Together",
    "WindowLearner",
    "__version__",
    "adapt",
    "bin_events",
    "calibrate_policy",
    "choose_engine",
    "convert",
    "error_bound",
    "fit_temperature",
    "fold_amplitudes",
    "fold_batch_norms",
    "from_nir",
    "from_norse",
    "from_sinabs",
    "from_snntorch",
    "from_spikingjelly",
    "load_network",
    "measure_activity",
    "measure_damage",
    "recalibrate",
    "run_stage",
    "save_network",
    "to_nir",
    "to_onnx",
    "to_radix",
    "to_spikingjelly",
]
