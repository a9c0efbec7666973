"""Reading and checking solver files, and the networks that they refer to."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from camrt.errors import CamrtError
from camrt.train.policies import POLICIES
from converters import textformat
from converters.errors import ConversionError
from converters.net import Net, read_net
from converters.reader import Network as Description
from converters.reader import PathLike
from converters.schema.caffe_pb2 import NetParameter, NetState, Phase, SolverParameter
from converters.upgrade import upgrade

MAX_BYTES = 16 << 20  # of a solver file, which may contain its network

TYPES = ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
_OLD_TYPES = {name.upper(): name for name in TYPES}
_WITHOUT_MOMENTUM = ("AdaGrad", "RMSProp")
_TRAIN_NETS = ("train_net", "train_net_param", "net", "net_param")


@dataclass(frozen=True)
class SolverFile:
    """A solver file.

    Attributes:
        param: The parameters, already checked.
        file: The path of the file.
    """

    param: SolverParameter
    file: str

    def train_net(self) -> Net:
        """Read the network to train, including its losses.

        Raises:
            CamrtError: The network cannot be read.

        Warns:
            ConversionWarning: The network has unknown fields.
        """
        param = self.param
        source = next(name for name in _TRAIN_NETS if param.HasField(name))
        return self._net(getattr(param, source), NetState(phase="TRAIN"), [param.train_state])

    def test_nets(self) -> list[Net]:
        """Read the networks to test, one for each `test_iter`.

        Raises:
            CamrtError: A network cannot be read.

        Warns:
            ConversionWarning: A network has unknown fields.
        """
        param = self.param
        sources: list[NetParameter | str] = [*param.test_net_param, *param.test_net]
        if len(sources) < len(param.test_iter):
            general = param.net_param if param.HasField("net_param") else param.net
            sources += [general] * (len(param.test_iter) - len(sources))
        states = param.test_state or [NetState()] * len(sources)
        return [
            self._net(source, NetState(phase="TEST"), [state]) for source, state in zip(sources, states, strict=True)
        ]

    def _net(self, source: NetParameter | str, state: NetState, states: Sequence[NetState]) -> Net:
        for more in states:  # their phase is ignored
            state.level = more.level if more.HasField("level") else state.level
            state.stage.extend(more.stage)
        try:
            described = self._path(source) if isinstance(source, str) else self._description(source)
            return read_net(
                described, phase=Phase.Name(state.phase), level=state.level, stages=tuple(state.stage), training=True
            )
        except ConversionError as error:
            raise CamrtError(str(error)) from None

    def _description(self, message: NetParameter) -> Description:
        return Description(upgrade(message, self.file), (), self.file)

    def _path(self, name: str) -> Path:
        """Resolve a path relative to the current folder, as in Caffe, or else to the folder of the solver file."""
        path, beside = Path(name), Path(self.file).parent / name
        return path if path.exists() or not beside.exists() else beside


def read_solver(path: PathLike) -> SolverFile:
    """Read a solver file.

    Args:
        path: A text prototxt, with the fields of Caffe's SolverParameter.

    Returns:
        The solver file. The legacy field `solver_type` is converted to `type`.

    Raises:
        CamrtError: The file cannot be read, or has a syntax error, an unknown field or an invalid value.
    """
    file = os.fspath(path)
    param = SolverParameter()
    try:
        unknown = textformat.parse(_text(file), param, file)
    except ConversionError as error:
        raise CamrtError(error.message, file=error.file) from None
    own = [field for field in unknown if not field.path]
    if own:
        raise CamrtError(_unknown(own[0].name), file=f"{file}:{own[0].line}:{own[0].column}")
    try:
        check(param)
    except CamrtError as error:
        raise error.in_file(file) from None
    return SolverFile(param, file)


def _text(file: str) -> str:
    path = Path(file)
    try:
        if path.exists() and not path.is_file():
            raise CamrtError("is not a regular file, expected a solver prototxt", file=file)
        if path.stat().st_size > MAX_BYTES:
            raise CamrtError(f"has more than {MAX_BYTES:,} bytes, expected a solver prototxt", file=file)
        data = path.read_bytes()
    except FileNotFoundError:
        raise CamrtError("does not exist", file=file) from None
    except (OSError, ValueError) as error:
        raise CamrtError(f"cannot be read: {error}", file=file) from None
    if b"\0" in data:
        raise CamrtError("is a binary file, expected a solver prototxt (text)", file=file)
    return data.decode("utf-8-sig", "replace")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [field.name for field in SolverParameter.DESCRIPTOR.fields], n=1)
    if near:
        return f"found the unknown field {name!r}, did you mean {near[0]!r}?"
    if name in ("layer", "layers"):
        return "is the prototxt of a network, expected that of a solver (did you mean solver.prototxt?)"
    return f"found the unknown field {name!r}, expected a field of SolverParameter"


def check(param: SolverParameter) -> None:
    """Check a solver's parameters, and convert `solver_type` to `type`.

    Raises:
        CamrtError: A parameter is invalid. The message names the field.
    """
    _check_nets(param)
    check_updates(param)
    for name in ("test_interval", "display", "snapshot"):
        _expect(param, name, getattr(param, name) >= 0, "0 or more")
    for name in ("max_iter", "average_loss"):
        _expect(param, name, getattr(param, name) >= 1, "1 or more")
    if any(count < 1 for count in param.test_iter):
        raise CamrtError(f"found test_iter {list(param.test_iter)}, expected 1 or more batches each")
    if param.test_iter and not param.test_interval:
        raise CamrtError("found test_iter without test_interval, expected both")


def check_updates(param: SolverParameter) -> None:
    """Check the parameters that an update needs, and convert `solver_type` to `type`.

    Raises:
        CamrtError: A parameter is invalid. The message names the field.
    """
    _upgrade(param)
    _check_rate(param)
    _check_rule(param)
    _expect(param, "stepsize", param.stepsize >= 0, "0 or more")
    _expect(param, "iter_size", param.iter_size >= 1, "1 or more")


def _expect(param: SolverParameter, name: str, holds: bool, expected: str) -> None:
    if not holds:
        found = f"{name} {getattr(param, name)!r}" if param.HasField(name) else f"no {name}"
        raise CamrtError(f"found {found}, expected {expected}")


def _upgrade(param: SolverParameter) -> None:
    if not param.HasField("solver_type"):
        return
    if param.HasField("type"):
        raise CamrtError("found type and its old form solver_type, expected one of the two")
    param.type = _OLD_TYPES[SolverParameter.SolverType.Name(param.solver_type)]
    param.ClearField("solver_type")


def _check_nets(param: SolverParameter) -> None:
    found = [name for name in _TRAIN_NETS if param.HasField(name)]
    if len(found) != 1:
        raise CamrtError(
            f"found {' and '.join(found) or 'no network to train'}, expected exactly one of {', '.join(_TRAIN_NETS)}"
        )
    tested, general = len(param.test_net) + len(param.test_net_param), found[0] in ("net", "net_param")
    count = len(param.test_iter)
    if tested > count or (count > tested and not general):
        raise CamrtError(f"found {tested} test_net and {count} test_iter, expected one each")
    if param.test_state and len(param.test_state) != count:
        raise CamrtError(f"found {len(param.test_state)} test_state and {count} test_iter, expected one each")


def _check_rate(param: SolverParameter) -> None:
    _expect(param, "base_lr", param.HasField("base_lr") and 0 <= param.base_lr < math.inf, "a rate of 0 or more")
    _expect(param, "lr_policy", param.lr_policy in POLICIES, f"one of {', '.join(POLICIES)}")
    for name in POLICIES[param.lr_policy].needs:
        if name == "stepvalue":
            steps = list(param.stepvalue)
            if not steps or steps != sorted(set(steps)) or steps[0] < 0:
                raise CamrtError(f"found stepvalue {steps} for lr_policy 'multistep', expected increasing numbers")
        elif not param.HasField(name):
            raise CamrtError(f"found no {name}, expected one, since lr_policy is {param.lr_policy!r}")
    if param.lr_policy == "step":
        _expect(param, "stepsize", param.stepsize > 0, "1 or more")
    for name in ("gamma", "power"):
        _expect(param, name, math.isfinite(getattr(param, name)), "a number")


def _check_rule(param: SolverParameter) -> None:
    _expect(param, "type", param.type in TYPES, f"one of {', '.join(TYPES)}")
    _expect(param, "regularization_type", param.regularization_type in ("L1", "L2"), "'L1' or 'L2'")
    _expect(param, "weight_decay", 0 <= param.weight_decay < math.inf, "0 or more")
    for name in ("momentum", "momentum2", "rms_decay"):
        _expect(param, name, 0 <= getattr(param, name) < 1, "0 or more, and less than 1")
    _expect(param, "delta", 0 <= param.delta < math.inf, "0 or more")
    if param.type in _WITHOUT_MOMENTUM:
        _expect(param, "momentum", param.momentum == 0, f"0 or none: {param.type} has no momentum")
    if math.isnan(param.clip_gradients):
        raise CamrtError("found clip_gradients nan, expected a number: the largest norm, or -1 for no clipping")
