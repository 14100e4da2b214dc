"""Find the activations of an ANN's traced graph, and everything in it that can't become spikes."""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from teas.ann.quantised import QuantisedReLU
from teas.ann.sized_trace import SizedTracer
from teas.errors import TeasError
from teas.spiking.trace import OneInputTracer, check_one_tensor, untraceable, without_side_effects

_RELU = {nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
_RELU6 = {nn.ReLU6, F.relu6}
_CLAMP = {torch.clamp, torch.clamp_min, F.hardtanh, nn.Hardtanh, "clamp", "clamp_", "clamp_min", "clamp_min_"}

_AFFINE_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Flatten, nn.Unflatten,
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.ZeroPad2d,
    nn.PixelShuffle, nn.ChannelShuffle, nn.Upsample,
)  # fmt: skip
_AFFINE_NAMES = {
    "add", "iadd", "radd", "sub", "cat", "concat", "stack", "flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
    "mean", "sum", "getitem", "pad", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "boolean_dispatch", "fn",
    "chunk", "split", "dropout", "interpolate", "conv2d", "linear", "batch_norm", "neg", "expand", "clone", "pixel_shuffle",
}  # fmt: skip
_SHAPE_NAMES = {"size", "dim", "getattr", "numel", "_assert", "eq", "floordiv"}
_SCALING_NAMES = {"mul", "imul", "truediv", "div", "itruediv"}
_WAY_OUT = {
    "gelu": "replace GELU by ReLU and fine-tune", "silu": "replace SiLU by ReLU and fine-tune", "hardswish": "replace Hardswish by ReLU and fine-tune",
    "sigmoid": "remove the sigmoid gate (squeeze-and-excitation) or train without it", "hardsigmoid": "remove the gate or train without it",
    "softmax": "attention has no spiking form here; leave a final softmax out of the module", "layernorm": "replace layer norm by batch norm and fine-tune",
    "layer_norm": "replace layer norm by batch norm and fine-tune", "groupnorm": "replace group norm by batch norm and fine-tune",
    "leakyrelu": "replace LeakyReLU by ReLU and fine-tune", "tanh": "replace tanh by ReLU and fine-tune", "elu": "replace ELU by ReLU and fine-tune",
    "mul": "a product of two activations is not a synapse; remove the gate", "multiheadattention": "attention has no spiking form here",
}  # fmt: skip


@dataclass(frozen=True)
class Activation:
    """One activation of the ANN: the layer it becomes, what it was, the value it is clipped at (infinity for a ReLU), and itself if it is quantised."""

    name: str
    kind: str
    ceiling: float
    quantised: QuantisedReLU | None = None


class _Tracer(OneInputTracer):
    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QuantisedReLU) or super().is_leaf_module(m, module_qualified_name)


def traced(ann: nn.Module, inputs: Tensor | None, fold: bool = True) -> fx.GraphModule:
    """The ANN in evaluation mode as a graph on copies of its weights, batch norms folded unless told not to.

    inputs: `[batch, *shape]`, for whose size it is traced, with a warning, where its forward pass looks at sizes. Raises `TeasError` where tracing breaks.
    """
    ann = copy.deepcopy(ann).eval()
    try:
        graph = _graph(ann, inputs)
    except Exception as error:  # the module's own code runs here and may raise anything
        raise untraceable(ann, error) from error
    check_one_tensor(graph, ann)
    without_side_effects(graph, ann)
    module = fx.GraphModule(ann, graph, type(ann).__name__)
    if fold:
        _fold_batch_norms(module)
    return module


def _graph(ann: nn.Module, inputs: Tensor | None) -> fx.Graph:
    try:
        return _Tracer().trace(ann)
    except Exception:  # of the module's own code, which may do without an answer that this tracer has not
        if inputs is None:
            raise
    graph = SizedTracer(_Tracer(), inputs).trace(ann)
    warnings.warn(
        f"{type(ann).__name__}'s forward pass asks for the size of a tensor; it is converted for inputs of {tuple(inputs.shape[1:])} alone", stacklevel=5
    )
    return graph


def _target_key(module: fx.GraphModule, node: fx.Node) -> Any:
    return type(module.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _ceiling(module: fx.GraphModule, node: fx.Node) -> float | None:
    """The clip value of a node that is a ReLU of some kind, None for any other node."""
    key = _target_key(module, node)
    if node.op not in ("call_module", "call_function", "call_method"):
        return None
    if key in _RELU or key is QuantisedReLU:
        return math.inf
    if key in _RELU6:
        return 6.0
    if key in _CLAMP:
        low, high = _clamp_bounds(module, node)
        if low == 0 and (high is None or (isinstance(high, (int, float)) and high > 0)):
            return math.inf if high is None else float(high)
    return None


def _clamp_bounds(module: fx.GraphModule, node: fx.Node) -> tuple[Any, Any]:
    if node.op == "call_module":
        child: Any = module.get_submodule(str(node.target))
        return child.min_val, child.max_val
    hard = node.target is F.hardtanh
    names, default = (("min_val", "max_val"), (-1.0, 1.0)) if hard else (("min", "max"), (None, None))
    given = [*node.args[1:3], None, None][:2]
    bounds = [node.kwargs.get(name, given[i]) for i, name in enumerate(names)]
    return tuple(default[i] if bound is None else bound for i, bound in enumerate(bounds))  # type: ignore[return-value]


def find_activations(module: fx.GraphModule, amplitudes: bool = True) -> list[Activation]:
    """Replace every activation of the graph by a call of a submodule of its own, followed by one that gives spikes their amplitude, unless told not to.

    A module that is used twice becomes two layers.
    """
    found: list[Activation] = []
    taken = {name for name, _ in module.named_modules()}
    called: set[str] = set()
    clipped = {node: ceiling for node in module.graph.nodes if (ceiling := _ceiling(module, node)) is not None}
    for node, ceiling in clipped.items():
        before = node.all_input_nodes[0]
        itself = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = type(itself).__name__ if itself else node.name
        name = _name(node, taken, called)
        last, value = node, before
        for path in (name, f"{name}_amplitude") if amplitudes else (name,):
            if path not in taken:  # the graph refuses calls of modules that are not there yet
                module.add_submodule(path, nn.Identity())
                taken.add(path)
            with module.graph.inserting_after(last):
                last = value = module.graph.call_module(path, (value,))
        node.replace_all_uses_with(value)
        module.graph.erase_node(node)
        found.append(Activation(name, kind, ceiling, itself if isinstance(itself, QuantisedReLU) else None))
    return found


def _name(node: fx.Node, taken: set[str], called: set[str]) -> str:
    """The path of the activation's module at its first call, else one beside the code that calls it: `layer1.0.relu`, `layer1.0.relu_2`."""
    if node.op == "call_module":
        name = str(node.target)
        if name not in called:
            called.add(name)
            return name
    else:
        scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        name = f"{scopes[-1]}.relu" if scopes and scopes[-1] else "relu"
        if name not in taken:
            return name
    number = 2
    while f"{name}_{number}" in taken:
        number += 1
    return f"{name}_{number}"


def refuse_unconvertible(module: fx.GraphModule) -> None:
    """Raise `TeasError` with one line for each node that is neither affine, pooling, a reshape nor a ReLU, before any other work."""
    carriers: set[fx.Node] = set()
    faults = []
    for node in module.graph.nodes:
        inputs = [source for source in node.all_input_nodes if source in carriers]
        if node.op == "placeholder":
            carriers.add(node)
        if node.op in ("placeholder", "output", "get_attr") or not inputs:
            continue
        name = _plain_name(module, node)
        if name in _SHAPE_NAMES:
            continue
        carriers.add(node)
        if _ceiling(module, node) is not None:
            continue
        if node.op == "call_module":
            fine = isinstance(module.get_submodule(str(node.target)), _AFFINE_MODULES)
        else:
            fine = name in _AFFINE_NAMES or (name in _SCALING_NAMES and len(inputs) == 1 and (name in ("mul", "imul") or node.args[0] is inputs[0]))
        if not fine:
            way = next((text for key, text in _WAY_OUT.items() if key == name), "only affine operations, pooling and ReLUs can become spikes")
            faults.append(f"  {node.target if node.op == 'call_module' else node.name} ({name}){_where(node)}: {way}")
    if faults:
        raise TeasError(f"{type(module).__name__} can't be converted; {len(faults)} operation(s) stand in the way:\n" + "\n".join(faults))


def _plain_name(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__.lower()
    if node.target in (operator.getitem,):
        return "getitem"
    return (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))).rstrip("_")


def _where(node: fx.Node) -> str:
    """The last line of the user's own code in the stack that recorded the node."""
    lines = (node.stack_trace or "").strip().splitlines()
    library = torch.__path__[0]
    frames = [line.strip() for line in lines if line.strip().startswith("File") and library not in line and "/teas/" not in line]
    return f" at {frames[-1]}" if frames else ""


def _fold_batch_norms(module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution or linear layer that feeds it alone; others stay, as the affine maps that they are."""
    uses = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in list(module.graph.nodes):
        if node.op != "call_module" or node.args[0].op != "call_module":
            continue
        before = node.args[0]
        norm, synapse = module.get_submodule(str(node.target)), module.get_submodule(str(before.target))
        if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or norm.running_mean is None:
            continue
        if len(before.users) != 1 or uses[str(before.target)] != 1 or uses[str(node.target)] != 1:
            continue
        if isinstance(synapse, (nn.Conv1d, nn.Conv2d)):
            folded: nn.Module = fuse_conv_bn_eval(synapse, norm)
        elif isinstance(synapse, nn.Linear):
            folded = fuse_linear_bn_eval(synapse, norm)
        else:
            continue
        parent, _, name = str(before.target).rpartition(".")
        setattr(module.get_submodule(parent), name, folded)
        node.replace_all_uses_with(before)
        module.graph.erase_node(node)
    module.recompile()


def with_modules(graph: fx.GraphModule, modules: Mapping[str, nn.Module]) -> fx.GraphModule:
    """The graph with these submodules in place; all others are shared. An amplitude that is not given passes values on."""
    root: dict[str, object] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            target = str(node.target)
            root[target] = modules.get(target) or (nn.Identity() if target.endswith("_amplitude") else graph.get_submodule(target))
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            root[str(node.target)] = getattr(graph.get_submodule(owner), name)
    return fx.GraphModule(root, graph.graph, type(graph).__name__)
