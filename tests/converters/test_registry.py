"""Handlers: registered by users, in plugins, for Python layers; and layers that have none."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import ConversionError, ConversionWarning, convert, handles, load_plugin, read_net, registry
from converters.graph import Graph
from converters.layer import Layer
from tests.caffe_files import input_layer, layer, weights_alone, written
from tests.converters.one_layer import run

INPUT = input_layer("data", 1, 2, 3)
DATA = np.array([[[1, -2, 3], [-4, 5, -6]]], np.float32)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    list(registry.entries())
    monkeypatch.setattr(registry._handlers, "_entries", dict(registry._handlers._entries))
    monkeypatch.setattr(registry, "_plugins", set(registry._plugins))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def converted(folder: Path, text: str) -> list[np.ndarray]:
    return run(convert(written(folder / "deploy.prototxt", text)), {"data": DATA})


def error_of(folder: Path, text: str) -> str:
    with pytest.raises(ConversionError) as caught:
        convert(written(folder / "deploy.prototxt", text))
    return str(caught.value)


def plugin(folder: Path, code: str, name: str = "my_layers.py") -> Path:
    return written(folder / name, "from converters import ConversionError, handles\n\n" + code)


# ---------------------------------------------------------------------------------------------------------- handlers


def test_a_handler_of_ones_own(tmp_path: Path) -> None:
    @handles("Square", operators="Mul", restrictions="none", origin="mine")
    def square(layer: Layer, graph: Graph) -> None:
        graph.node("Mul", [layer.bottoms[0], layer.bottoms[0]], layer.tops)

    (found,) = converted(tmp_path, INPUT + layer("sq", "Square", "data"))
    np.testing.assert_array_equal(found, DATA**2)
    (entry,) = [entry for entry in registry.entries() if "Square" in entry.types]
    assert (entry.operators, entry.restrictions, entry.origin) == (("Mul",), "none", "mine")


def test_a_handler_of_several_types(tmp_path: Path) -> None:
    @handles("Double", "Twice")
    def double(layer: Layer, graph: Graph) -> None:
        graph.node("Add", [layer.bottoms[0], layer.bottoms[0]], layer.tops)

    (found,) = converted(tmp_path, INPUT + layer("a", "Double", "data") + layer("b", "Twice", "a"))
    np.testing.assert_array_equal(found, 4 * DATA)


def test_a_handler_reads_weights_and_unknown_fields(tmp_path: Path) -> None:
    @handles("Gain")
    def gain(layer: Layer, graph: Graph) -> None:
        (factors,) = layer.weights((3,))
        offset = graph.constant(layer.extra["gain_param"]["offset"])
        scaled = graph.node("Mul", [layer.bottoms[0], graph.weight("factors", factors)])
        graph.node("Add", [scaled, offset], layer.tops)

    text = INPUT + layer("g", "Gain", "data", params="gain_param { offset: 0.5 }")
    weights = written(tmp_path / "w", weights_alone({"g": [np.array([1, 10, 100], np.float32)]}))
    with pytest.warns(ConversionWarning, match="gain_param"):
        model = convert(written(tmp_path / "p", text), weights)
    assert "g.factors" in [tensor.name for tensor in model.graph.initializer]
    np.testing.assert_array_equal(run(model, {"data": DATA})[0], DATA * np.array([1, 10, 100]) + 0.5)


def test_a_second_handler_is_refused() -> None:
    with pytest.raises(
        ConversionError, match=r"second handler for 'Pooling'.*converters\.handlers\.pooling\.pooling.*replace"
    ):

        @handles("Pooling")
        def mine(layer: Layer, graph: Graph) -> None:
            pass

    with pytest.raises(ConversionError, match="second handler for 'ReLU'"):
        handles("Fresh", "ReLU")(lambda layer, graph: None)
    assert all("Fresh" not in entry.types for entry in registry.entries())


def test_replace_takes_the_place(tmp_path: Path) -> None:
    @handles("ReLU", replace=True)
    def negative(layer: Layer, graph: Graph) -> None:
        graph.node("Neg", layer.bottoms, layer.tops)

    (found,) = converted(tmp_path, INPUT + layer("r", "ReLU", "data"))
    np.testing.assert_array_equal(found, -DATA)


@pytest.mark.parametrize(
    ("types", "options", "says"),
    [
        ((), {}, "no layer type"),
        (("Python",), {"module": "m"}, "module or layer alone"),
        (("Python",), {"layer": "L"}, "module or layer alone"),
        (("Mine",), {"module": "m", "layer": "L"}, r'expected handles\("Python", module=\.\.\., layer=\.\.\.\)'),
    ],
)
def test_registration_must_say_what_it_handles(types: tuple[str, ...], options: dict[str, str], says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        handles(*types, **options)


# ----------------------------------------------------------------------------------------------- handlers that fail


def test_a_handler_that_raises_is_named(tmp_path: Path) -> None:
    @handles("Broken")
    def broken(layer: Layer, graph: Graph) -> None:
        raise KeyError("alpha")

    with pytest.raises(ConversionError) as caught:
        convert(written(tmp_path / "deploy.prototxt", INPUT + layer("b", "Broken", "data")))
    for part in ("deploy.prototxt", "layer b (Broken)", "its handler failed with KeyError: 'alpha'"):
        assert part in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_handlers_own_error_is_kept(tmp_path: Path) -> None:
    @handles("Picky")
    def picky(layer: Layer, graph: Graph) -> None:
        raise layer.error("found no alpha, expected one")

    said = error_of(tmp_path, INPUT + layer("p", "Picky", "data"))
    assert re.search(r"deploy\.prototxt: layer p \(Picky\): found no alpha, expected one$", said)


def test_a_handler_that_writes_no_top(tmp_path: Path) -> None:
    @handles("Idle")
    def idle(layer: Layer, graph: Graph) -> None:
        graph.node("Identity", layer.bottoms, layer.tops[:1])

    said = error_of(tmp_path, INPUT + layer("i", "Idle", "data", "one two"))
    for part in ("layer i (Idle)", "wrote no tensor 'two'", "expected one for each top"):
        assert part in said


def test_a_handler_that_writes_anothers_blob(tmp_path: Path) -> None:
    @handles("Rude")
    def rude(layer: Layer, graph: Graph) -> None:
        graph.node("Identity", layer.bottoms, ["data"])

    said = error_of(tmp_path, INPUT + layer("r", "Rude", "data"))
    for part in ("layer r (Rude)", "writes the tensor 'data', which exists"):
        assert part in said


def test_a_handler_that_invents_an_operator(tmp_path: Path) -> None:
    @handles("Inventive")
    def inventive(layer: Layer, graph: Graph) -> None:
        graph.node("Frobnicate", layer.bottoms, layer.tops)

    said = error_of(tmp_path, INPUT + layer("i", "Inventive", "data"))
    assert "onnx's checker refuses" in said
    assert "Frobnicate" in said


@pytest.mark.parametrize(
    "attribute", [{"axes": []}, {"alpha": object()}, {"big": 2**70}], ids=["empty", "object", "big"]
)
def test_a_handler_whose_attributes_are_no_attributes(attribute: dict[str, Any], tmp_path: Path) -> None:
    @handles("Odd")
    def odd(layer: Layer, graph: Graph) -> None:
        graph.node("Softmax", layer.bottoms, layer.tops, **attribute)

    assert "deploy.prototxt" in error_of(tmp_path, INPUT + layer("o", "Odd", "data"))


# ----------------------------------------------------------------------------------------------------- Python layers

PYTHON = 'python_param {{ module: "{}" layer: "{}" param_str: "{{\'scale\': 3}}" }}'


def test_python_layers_are_told_apart_by_module_and_layer(tmp_path: Path) -> None:
    @handles("Python", module="mine", layer="Triple")
    def triple(layer: Layer, graph: Graph) -> None:
        assert layer.params.python_param.param_str == "{'scale': 3}"
        graph.node("Mul", [layer.bottoms[0], graph.constant(3)], layer.tops)

    @handles("Python", module="mine", layer="Negate")
    def negate(layer: Layer, graph: Graph) -> None:
        graph.node("Neg", layer.bottoms, layer.tops)

    text = INPUT + layer("t", "Python", "data", params=PYTHON.format("mine", "Triple"))
    text += layer("n", "Python", "t", params=PYTHON.format("mine", "Negate"))
    np.testing.assert_array_equal(converted(tmp_path, text)[0], -3 * DATA)
    said = error_of(tmp_path, text.replace('module: "mine" layer: "Negate"', 'module: "other" layer: "Negate"'))
    assert "Python other.Negate: n" in said
    assert 'handles("Python", module="other", layer="Negate")' in said
    with pytest.raises(ConversionError, match=r"second handler for 'Python mine\.Triple'"):
        handles("Python", module="mine", layer="Triple")(negate)


def test_a_python_layer_without_bottoms_is_an_input_unless_it_has_a_handler(tmp_path: Path) -> None:
    text = layer("source", "Python", "", "data", PYTHON.format("mine", "Source")) + layer("r", "ReLU", "data")
    assert [data.name for data in read_net(written(tmp_path / "p", text)).inputs] == ["data"]

    @handles("Python", module="mine", layer="Source")
    def source(layer: Layer, graph: Graph) -> None:
        graph.node("Identity", [graph.constant([-1.0, 2.0])], layer.tops)

    assert run(convert(written(tmp_path / "p", text)), {})[0].tolist() == [0, 2]


# ------------------------------------------------------------------------------------------------ unsupported layers


def test_unsupported_layers_are_reported_together(tmp_path: Path) -> None:
    text = (
        INPUT
        + layer("a1", "Frobnicate", "data")
        + layer("b", "ReLU", "a1")
        + layer("a2", "Frobnicate", "b")
        + layer("c", "Relu", "a2")
        + layer("d", "Python", "c", params=PYTHON.format("rpn.proposal", "Proposal"))
        + layer("e", "Convolutional", "d")
    )
    said = error_of(tmp_path, text)
    assert said.splitlines()[0].endswith("deploy.prototxt: 5 layer(s) of 4 type(s) have no handler:")
    assert said.splitlines()[1:5] == [
        "  Frobnicate: a1, a2",
        "  Relu: c (did you mean ReLU?)",
        "  Python rpn.proposal.Proposal: d (did you mean Python rpn.proposal_layer.ProposalLayer?)",
        "  Convolutional: e (did you mean Convolution?)",
    ]
    for part in (
        '@converters.handles("Frobnicate")',
        "--plugin my_layers.py",
        "converters.load_plugin",
        "CONTRIBUTING.md",
    ):
        assert part in said


def test_layers_that_no_output_needs_may_be_unsupported(tmp_path: Path) -> None:
    text = INPUT + layer("a", "ReLU", "data") + layer("b", "Frobnicate", "data")
    path = written(tmp_path / "p", text)
    assert [value.name for value in convert(path, outputs=["a"]).graph.output] == ["a"]
    with pytest.raises(ConversionError, match="Frobnicate"):
        convert(path)


def test_how_to_plug_in_works_as_it_is_told(tmp_path: Path) -> None:
    """The decorator that the report prints, put into a file and loaded, mends the conversion."""
    text = (
        INPUT + layer("d", "Python", "data", params=PYTHON.format("rpn.proposal", "Proposal")) + layer("e", "Mine", "d")
    )
    for _ in range(2):
        said = error_of(tmp_path, text)
        decorator = re.search(r"@converters\.(handles\(.*?\)) in a file", said)
        assert decorator
        code = f"@{decorator[1]}\ndef handler(layer, graph):\n    graph.node('Neg', layer.bottoms, layer.tops)\n"
        load_plugin(plugin(tmp_path, code, f"plugin_{len(registry._plugins)}.py"))
    np.testing.assert_array_equal(converted(tmp_path, text)[0], DATA)


# ---------------------------------------------------------------------------------------------------------- plugins

SQUARE = """
@handles("Square")
def square(layer, graph):
    graph.node("Mul", [layer.bottoms[0], layer.bottoms[0]], layer.tops)
"""


def test_plugin(tmp_path: Path) -> None:
    load_plugin(plugin(tmp_path, SQUARE))
    np.testing.assert_array_equal(converted(tmp_path, INPUT + layer("s", "Square", "data"))[0], DATA**2)


def test_plugin_on_the_command_line(tmp_path: Path, repository: Path) -> None:
    prototxt = written(tmp_path / "deploy.prototxt", INPUT + layer("s", "Square", "data"))
    command: list[str | Path] = [
        sys.executable,
        repository / "scripts" / "convert.py",
        prototxt,
        "-o",
        tmp_path / "net.onnx",
    ]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "Square: s" in refused.stderr + refused.stdout
    assert not (tmp_path / "net.onnx").exists()
    subprocess.run([*command, "--plugin", plugin(tmp_path, SQUARE)], capture_output=True, check=True)
    assert (tmp_path / "net.onnx").stat().st_size


def test_plugin_loaded_twice_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plugin(tmp_path, SQUARE + f"print('x', file=open({str(tmp_path / 'runs')!r}, 'a'))\n")
    load_plugin(path)
    load_plugin(str(path))
    monkeypatch.chdir(tmp_path)
    load_plugin("my_layers.py")
    (tmp_path / "link.py").symlink_to(path)
    load_plugin(tmp_path / "link.py")
    assert (tmp_path / "runs").read_text() == "x\n"


def test_plugins_of_one_name_in_two_folders(tmp_path: Path) -> None:
    for index, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        load_plugin(plugin(tmp_path / name, SQUARE.replace("Square", f"Square{index}")))
    types = {type for entry in registry.entries() for type in entry.types}
    assert {"Square0", "Square1"} <= types


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def (", "SyntaxError"),
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("raise ConversionError('too old')", "too old"),
        (SQUARE.replace("Square", "Pooling"), "second handler for 'Pooling'"),
        (SQUARE + SQUARE, "second handler for 'Square'"),
    ],
)
def test_plugin_that_fails(code: str, says: str, tmp_path: Path) -> None:
    path = plugin(tmp_path, code, "broken.py")
    modules = set(sys.modules)
    for _ in range(2):  # it may be mended and loaded again
        with pytest.raises(ConversionError) as caught:
            load_plugin(path)
        for part in ("broken.py", "the plugin fails", says):
            assert part in str(caught.value)
    assert not [name for name in set(sys.modules) - modules if "broken" in name]
    load_plugin(plugin(tmp_path, SQUARE, "broken.py"))
    np.testing.assert_array_equal(converted(tmp_path, INPUT + layer("s", "Square", "data"))[0], DATA**2)


def test_plugin_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    code = SQUARE + SQUARE.replace('"Square"', '"ReLU", replace=True') + "raise ValueError('late')\n"
    with pytest.raises(ConversionError, match="the plugin fails: ValueError: late"):
        load_plugin(plugin(tmp_path, code))
    np.testing.assert_array_equal(converted(tmp_path, INPUT + layer("r", "ReLU", "data"))[0], np.maximum(DATA, 0))
    assert "Square" in error_of(tmp_path, INPUT + layer("s", "Square", "data"))


@pytest.mark.parametrize("name", ["missing.py", "folder", "weights.caffemodel"])
def test_no_plugin(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    written(tmp_path / "weights.caffemodel", b"\x0a\x00")
    with pytest.raises(ConversionError, match=rf"{name}: .*expected one that calls converters\.handles"):
        load_plugin(tmp_path / name)


# ------------------------------------------------------------- before anything was converted: a process of its own

FRESH = """
import sys
import numpy as np
import converters
from converters import ConversionError, handles, load_plugin

{code}

model = converters.convert({prototxt!r})
print([node.op_type for node in model.graph.node])
"""


def in_a_fresh_process(folder: Path, code: str, text: str) -> str:
    prototxt = written(folder / "deploy.prototxt", text)
    script = FRESH.format(code=textwrap.dedent(code), prototxt=str(prototxt))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_first_of_all_a_plugin_that_fails(tmp_path: Path) -> None:
    """The handlers that come with the package are there all the same."""
    path = plugin(tmp_path, SQUARE + "raise ValueError('late')\n")
    code = f"""
    try:
        load_plugin({str(path)!r})
    except ConversionError as error:
        assert "late" in str(error), error
    else:
        raise AssertionError
    """
    assert in_a_fresh_process(tmp_path, code, INPUT + layer("r", "ReLU", "data")) == "['Relu']"


def test_first_of_all_a_replacement(tmp_path: Path) -> None:
    code = """
    @handles("ReLU", replace=True)
    def negative(layer, graph):
        graph.node("Neg", layer.bottoms, layer.tops)
    """
    assert in_a_fresh_process(tmp_path, code, INPUT + layer("r", "ReLU", "data")) == "['Neg']"


def test_first_of_all_a_second_handler(tmp_path: Path) -> None:
    code = """
    try:
        handles("ReLU")(lambda layer, graph: None)
    except ConversionError as error:
        assert "second handler for 'ReLU'" in str(error), error
    else:
        raise AssertionError
    """
    assert in_a_fresh_process(tmp_path, code, INPUT + layer("r", "ReLU", "data")) == "['Relu']"
