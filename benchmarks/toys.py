"""Small releases for benchmarks and tests of rollouts: the window's mean, and what may be wrong with it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from fieldloop.domain.profile import Channel, Clock, Profile
from fieldloop.domain.release import Canary, File, Manifest, Release, encode_canary, encode_manifest, output_hash
from fieldloop.domain.windows import WindowSpec
from fieldloop.edge.model import Model

STEP_US: Final = 1_000_000
STEPS: Final = 3
SPEC: Final = WindowSpec(("wind", "pitch"), ("mean", "mean"), STEP_US, STEPS)
PROFILE_NAME: Final = "senvion-mm82"  # a profile that the repository has, under which the toy's device is enrolled
PROFILE: Final = Profile(
    name=PROFILE_NAME,
    format="json",
    device_field=None,
    clock=Clock("t", "epoch_us"),
    cadence_us=STEP_US,
    future_tolerance_us=STEP_US,
    channels=(
        Channel("wind", "w", "m/s", 1.0, 0.0, -1e6, 1e6, "mean"),
        Channel("pitch", "p", "deg", 1.0, 0.0, -1e6, 1e6, "mean"),
    ),
)
WIDTH: Final = 512  # of the matrix that makes a model slow
CANARY_WINDOWS: Final = 32


@dataclass(frozen=True)
class Toy:
    """What a model does to the mean of its window.

    Attributes:
        version: of the model.
        gain: its output is so many times the mean.
        bias: and this much more.
        beyond: where the mean is above this, the output is `wrong` instead; canaries stay below.
        wrong: see `beyond`.
        products: products with a square matrix that it takes a window, for nothing.
        ballast_bytes: of weights that it carries, for nothing.
        fails_above: it breaks at run time on a window with a greater mean.
    """

    version: int
    gain: float = 1.0
    bias: float = 0.0
    beyond: float = 1e9
    wrong: float = 0.0
    products: int = 0
    ballast_bytes: int = 0
    fails_above: float | None = None


def make(model: str, toy: Toy) -> Release:
    """Return the release of a toy; its canary is sound and lies between 0 and 10."""
    built = graph(toy)
    draw = np.random.default_rng(1)
    inputs = draw.uniform(0, 10, (CANARY_WINDOWS, 2, STEPS)).astype(np.float32)
    outputs = Model.load(built).run(inputs)
    canary = encode_canary(Canary(inputs, outputs))
    manifest = Manifest(
        recipe=model,
        model=model,
        version=toy.version,
        run_id="run",
        window=SPEC,
        profiles={PROFILE_NAME: PROFILE},
        target="power",
        unit="kW",
        features=("mean",),
        graph=File.of(built),
        canary=File.of(canary),
        output_hash=output_hash(outputs),
        tolerance=0.0,
        runtime={},
        lineage={},
        created_at="2026-01-01T00:00:00+00:00",
    )
    return Release(encode_manifest(manifest), built, canary)


def graph(toy: Toy) -> bytes:
    """Return what a toy computes, as ONNX."""
    draw = np.random.default_rng(toy.version)
    constants = {
        "gain": np.array([toy.gain], np.float32),
        "bias": np.array([toy.bias], np.float32),
        "beyond": np.array([toy.beyond], np.float32),
        "wrong": np.array([toy.wrong], np.float32),
        "zero": np.array([0], np.float32),
        "ballast": draw.random(max(toy.ballast_bytes // 4, 1), np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["window"], ["means"], axes=[1, 2], keepdims=1),
        helper.make_node("Flatten", ["means"], ["mean"], axis=1),
        helper.make_node("Mul", ["mean", "gain"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["sound"]),
        helper.make_node("Greater", ["mean", "beyond"], ["is_beyond"]),
        helper.make_node("Where", ["is_beyond", "wrong", "sound"], ["chosen"]),
        helper.make_node("ReduceMean", ["ballast"], ["weight"], axes=[0], keepdims=1),
        helper.make_node("Mul", ["weight", "zero"], ["weightless"]),
        helper.make_node("Add", ["chosen", "weightless"], ["loaded"]),
    ]
    last = "loaded"
    if toy.products:
        nodes += _products(toy.products, last, "late")
        last = "late"
        constants["square"] = (draw.random((WIDTH, WIDTH)) / WIDTH).astype(np.float32)
        constants["row"] = np.ones((1, WIDTH), np.float32)
    if toy.fails_above is not None:
        nodes += _fragile(last, "fragile")
        last = "fragile"
        constants["limit"] = np.array([toy.fails_above], np.float32)
        constants["table"] = np.zeros((1, 1), np.float32)
    nodes.append(helper.make_node("Identity", [last], ["prediction"]))
    whole = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", 2, STEPS])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _products(count: int, before: str, after: str) -> list[NodeProto]:
    """Return nodes that add nothing, after so many products."""
    return [
        helper.make_node("Mul", ["mean", "row"], ["wide0"]),
        *(helper.make_node("MatMul", [f"wide{n}", "square"], [f"wide{n + 1}"]) for n in range(count)),
        helper.make_node("ReduceMean", [f"wide{count}"], ["worked"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["worked", "zero"], ["nothing"]),
        helper.make_node("Add", [before, "nothing"], [after]),
    ]


def _fragile(before: str, after: str) -> list[NodeProto]:
    """Return nodes that add nothing, and gather from beyond their table where the mean is above the limit."""
    return [
        helper.make_node("Greater", ["mean", "limit"], ["is_above"]),
        helper.make_node("Cast", ["is_above"], ["places"], to=TensorProto.INT64),
        helper.make_node("Flatten", ["places"], ["place"], axis=1),
        helper.make_node("Gather", ["table", "place"], ["found"], axis=0),
        helper.make_node("ReduceSum", ["found"], ["little"], keepdims=0),
        helper.make_node("Add", [before, "little"], [after]),
    ]
