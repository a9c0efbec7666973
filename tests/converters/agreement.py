"""How a converted network is compared with what real Caffe answers: shared by the tests of layers and of opsets."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnxruntime

from converters import Net
from converters.conversion import DEFAULT_OPSET, Converted, build
from converters.model import in_memory
from tests.caffe_cases import CASES, Case, answers_of, read

RTOL, ATOL = 1e-4, 1e-5

# Networks that Caffe takes and we do not: case -> what the error says.
REFUSED = {
    "v0_net": "V0 form of 2013",
    # Caffe fills weights that are missing with its fillers' numbers. In a network for inference that is a mistake.
    "model_missing_default_fillers": "found no weights",
    "model_missing_layer": "found no weights",
    "no_model_bilinear": "found no weights",
    # Each box kept lowers the threshold for the next: NonMaxSuppression cannot say that.
    "detection_eta": "found eta",
    # An ONNX model cannot return its own input.
    "only_input": "no layers left",
}
# Networks whose batch is not free: case -> what needs the size.
FIXED_BATCH = {
    # Caffe itself refuses another size.
    "bias_axis0": "a weight for each item",
    "conv_axis0": "the batch is the channels",
    "dummy_legacy": "joined with a constant",
    "dummy_no_filler": "joined with a constant",
    "dummy_several_fillers": "added to a constant",
    "ip_axis0": "a weight for each item",
    "parameter": "added to a learned blob",
    "reshape_scalar": "becomes a single number",
    "reshape_whole": "becomes a shape that is written out",
    "scale_bottoms_bias": "an offset for each item",
    "scale_from_axis0": "a weight for each item",
    "scale_num_axes_all_axis0": "a weight for each item",
    "slice_axis0": "the batch is cut apart",
    # Caffe would take one.
    "argmax_1d_axis0": "the largest of the batch's items",
    "argmax_axis0": "the largest of the batch's items",
    "concat_axis0": "batches of different sizes are joined",
    "concat_dim0": "batches of different sizes are joined",
    "crop_axis0": "the batch is cut to another's size",
    "dummy_shapes": "joined with a constant along the batch",
}
NEWEST_OF_TYPE = {"ROIPooling": 21, "ROIAlign": 21}  # ONNX Runtime has no newer MaxRoiPool and RoiAlign
OLDEST_OF_TYPE = {"DeformableConvolution": 16, "FlowWarp": 16, "SpatialTransformer": 16}  # GridSample's opset
OPSETS = (13, DEFAULT_OPSET, 18, onnx.defs.onnx_opset_version())  # where operators change their form
Providers = list[str | tuple[str, dict[str, str]]]
CPU: Providers = ["CPUExecutionProvider"]
CUDA: Providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), *CPU]  # the CPU for operators that CUDA has not
RECURRENT = {"LSTM", "RNN"}  # their axes are time, batch, ...
COUNTED = {"DetectionOutput"}  # how many values they give, only the data tell


CONVERTED = [name for name, case in CASES.items() if case.name not in REFUSED]


@functools.cache
def built(case: Case) -> Converted:
    return build(read(case))


def converted(case: Case, opset: int = DEFAULT_OPSET) -> onnx.ModelProto:
    """What `convert` gives, without the digests of the files."""
    return in_memory(build(read(case), opset=opset).draft, {})


def session_of(model: onnx.ModelProto, providers: Providers = CPU) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # threads take longer to start than these networks to run
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)


def check(case: Case, opset: int = DEFAULT_OPSET, providers: Providers = CPU) -> None:
    """Convert, check and run a case at each of its batch sizes."""
    net, model = read(case), converted(case, opset)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", opset)]
    session = session_of(model, providers)
    inputs = {data.name for data in net.inputs}
    for answer in answers_of(case):
        if answer.batch and case.name in FIXED_BATCH:
            continue
        expected = {net.tensors[blob]: array for blob, array in answer.outputs.items()}
        expected = {name: array for name, array in expected.items() if name not in inputs}
        names = [output.name for output in session.get_outputs()]
        assert sorted(names) == sorted(expected)
        fed = {name: array for name, array in answer.inputs.items() if name in inputs}
        found = dict(zip(names, session.run(names, fed), strict=True))
        for name in names:
            where = f"{case.name}: {name} at batch {answer.batch or 'of the case'}, opset {opset}"
            compare(found[name], expected[name], where, exact=name in exact_tensors(net))


def compare(found: np.ndarray, expected: np.ndarray, where: str, *, exact: bool) -> None:
    assert found.dtype == np.float32, where
    assert found.shape == expected.shape, where
    rtol, atol = (0, 0) if exact else (RTOL, ATOL)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol, equal_nan=True, err_msg=where)


def exact_tensors(net: Net) -> set[str]:
    """Tensors that hold indices or decisions: no tolerance there."""
    exact = set()
    for layer in net.layers:
        if layer.type == "Threshold" or (layer.type == "ArgMax" and not layer.params.argmax_param.out_max_val):
            exact.update(layer.tops)
        if layer.type == "Pooling":
            exact.update(layer.tops[1:])
    return exact
