"""Files from strangers: more than a thousand mutated ones each end in a clear error or in a network that runs."""

import copy
import json
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import teas
from teas.exchange.native import MAX_WINDOW

many = settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["rate", "first_spike", "two_phase", "zero", "subtract"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(["1", "4", "reset", "leak"]), inner, max_size=3),
    max_leaves=6,
)


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), teas.IF(torch.tensor([0.5, 0.75])), nn.Flatten(), nn.Linear(8, 3), teas.LIF(0.5))


def network():
    return teas.SpikingNetwork(module(), {"1": 3, "4": 5}, layout="even")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "w.safetensors"
    teas.save_network(network(), path)
    with safe_open(str(path), "pt") as file:
        return path, path.read_bytes(), json.loads(file.metadata()["teas"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    pytest.importorskip("nir", reason="needs nir: pip install 'teas[exchange]'")
    from teas.exchange.nir_file import read_tree

    path = tmp_path_factory.mktemp("nir") / "a.nir"
    teas.to_nir(network(), path, (1, 4, 4), strict=False)
    return path, read_tree(path)


def runs(load):
    """Whether the file was a network; any error but `TeasError` is a failure."""
    try:
        loaded = load()
    except teas.TeasError:
        return False
    assert max(loaded.windows.values()) <= MAX_WINDOW
    inputs = torch.zeros(1, 1, 4, 4) if loaded.semantics.encoding != "train" else torch.zeros(1, 1, 1, 4, 4)
    assert loaded.with_windows(1)(inputs).logits.shape == (1, 3)
    return True


@many
@given(data=st.data())
def test_safetensors_with_bytes_changed(native, data):
    path, content = native[0], bytearray(native[1])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        content = content or bytearray(b"x")
    mutated = path.with_name("mutated")
    mutated.write_bytes(content)
    runs(lambda: teas.load_network(mutated, module()))


def replaced(tree, data, values):
    """A copy with one item somewhere, drawn, replaced or removed."""
    tree = copy.deepcopy(tree)
    place = tree
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.integers(0, 3)):
            place = place[key]
        elif data.draw(st.integers(0, 5)):
            place[key] = data.draw(values)
            return tree
        else:
            del place[key]
            return tree


@many
@given(data=st.data())
def test_safetensors_with_other_metadata(native, data):
    path, _, header, tensors = native
    mutated = path.with_name("mutated")
    save_file(tensors, str(mutated), metadata={"teas": json.dumps(replaced(header, data, json_values))})
    runs(lambda: teas.load_network(mutated, module()))


@many
@given(st.one_of(st.text(max_size=30), json_values.map(json.dumps), st.dictionaries(st.text(max_size=3), json_values, max_size=3).map(json.dumps)))
def test_windows_from_any_text(text):
    try:
        windows = teas.TimeWindows.from_json(text)
    except teas.TeasError:
        return
    assert all(isinstance(steps, int) and steps >= 1 for steps in windows.values())


def changed_bytes(content, generator):
    content = bytearray(content)
    for _ in range(generator.randint(1, 6)):
        kind, at = generator.randrange(4), generator.randrange(len(content))
        if kind == 0:
            content[at] = generator.randrange(256)
        elif kind == 1:
            content[at] ^= 1 << generator.randrange(8)
        elif kind == 2:
            content[at : at + 4] = generator.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"])
        else:
            start, length = generator.randrange(len(content)), generator.randint(1, 16)
            content[at : at + length] = content[start : start + length]
    return content


def test_nir_files_with_bytes_changed(graph, tmp_path):
    """All in one reading process, as `from_nir` reads one: the HDF5 library loops for ever on about one in a thousand of these."""
    from teas.exchange.nir_file import read_trees
    from teas.exchange.nir_import import network_of

    generator, content, paths = random.Random(0), graph[0].read_bytes(), []
    for index in range(250):
        paths.append(tmp_path / f"{index}.nir")
        paths[-1].write_bytes(changed_bytes(content, generator))

    def load(tree):
        if isinstance(tree, teas.TeasError):
            raise tree
        return network_of(tree, "a mutated file")

    trees = list(read_trees(paths, seconds=3))
    assert len(trees) == 250
    outcomes = [runs(lambda tree=tree: load(tree)) for tree in trees]
    assert 30 < sum(outcomes) < 220  # both ends are reached


arrays = st.one_of(
    st.lists(st.integers(-3, 5), max_size=4).map(np.array),
    st.sampled_from([np.zeros((2, 2, 2)), np.full((3,), np.nan), np.full((2,), 1e30), np.array(2**40), np.ones((3, 8), np.complex64), np.array(["a"])]),
    st.sampled_from(["IF", "LIF", "Affine", "Conv2d", "Flatten", "Scale", "AvgPool2d", "Input", "Output", "CubaLIF", ""]),
    json_values,
)


@many
@given(data=st.data())
def test_nir_graphs_with_other_content(graph, data):
    from teas.exchange.nir_import import network_of

    tree = replaced(graph[1], data, arrays)
    if data.draw(st.booleans()) and isinstance(tree.get("metadata"), dict):
        tree["metadata"]["teas"] = json.dumps(replaced(json.loads(graph[1]["metadata"]["teas"]), data, json_values))
    runs(lambda: network_of(tree, "a mutated graph"))


def test_a_file_that_stops_its_reader_is_damaged_and_the_next_is_read(graph, tmp_path, monkeypatch):
    from teas.exchange import nir_file

    script = tmp_path / "hdf5_reader.py"
    script.write_text("import os, sys\nfor path in sys.argv[3:]:\n    if 'bad' in path: os.abort()\n" + READER)
    monkeypatch.setattr(nir_file, "__file__", str(tmp_path / "nir_file.py"))
    found = list(nir_file.read_trees([tmp_path / "bad", graph[0]]))
    assert "ended the process" in str(found[0])
    assert isinstance(found[1], dict)


READER = f"""
    import importlib.util
    spec = importlib.util.spec_from_file_location("reader", {str(teas.__path__[0])!r} + "/exchange/hdf5_reader.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    sys.stdout.buffer.write(reader.frame(path, 2**31))
"""


def test_groups_that_lead_out_of_the_file_are_refused(graph, tmp_path):
    import h5py

    for name, link in [("external", h5py.ExternalLink(str(graph[0]), "/node")), ("soft", h5py.SoftLink("/node"))]:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group("node")["nodes"] = link
        with pytest.raises(teas.TeasError, match="link out of the file"):
            teas.from_nir(tmp_path / name)


def test_an_array_that_unpacks_to_more_than_a_file_can_hold_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'teas[exchange]'")
    with h5py.File(tmp_path / "bomb", "w") as file:
        file.create_group("node").create_dataset("weight", shape=(2**40,), chunks=(2**20,), dtype="f4", compression="gzip")
    with pytest.raises(teas.TeasError, match="more than the file can hold"):
        teas.from_nir(tmp_path / "bomb")
