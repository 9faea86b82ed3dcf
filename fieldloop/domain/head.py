"""The last step of a model: what a learner gives becomes a prediction, once in NumPy and once in the graph.

    value        a number                     → the number
    probability  shares of two classes        → the probability of the second
    classes      shares of K classes          → code of the likeliest, and the K probabilities
    score        how unusual, K statistics    → the largest as a share of its threshold: an alarm from 1 on

The first column of a prediction is always the answer; further ones say how sure it is.
"""

from typing import Final, Literal

import msgspec
import numpy as np
import onnx
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Tensor, Var, argument, build

HeadKind = Literal["value", "probability", "classes", "score"]
RAW: Final = "raw"
ANSWER: Final = "answer"
_LEAST: Final = 1e-7  # share below which a class counts as this likely, so that its logarithm is finite


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How raw shares or scores become a prediction.

    Attributes:
        kind: see above.
        thresholds: [K] of scores.
        slope: calibration of shares p: softmax(slope · ln p + bias).
        bias: [K], see `slope`; none where shares are taken as they are.
    """

    kind: HeadKind
    thresholds: tuple[float, ...] = ()
    slope: float = 1.0
    bias: tuple[float, ...] = ()

    def apply(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return predictions, float32 [N, P], for raw values, float32 [N, K]."""
        if self.kind == "value":
            return raw
        if self.kind == "score":
            shares: NDArray[np.float32] = (raw / np.array(self.thresholds, dtype=np.float32)).max(axis=1, keepdims=True)
            return shares
        shares = self._calibrated(raw)
        if self.kind == "probability":
            return shares[:, 1:2]
        return np.concatenate([shares.argmax(axis=1).astype(np.float32)[:, None], shares], axis=1)

    def graph(self, width: int) -> onnx.ModelProto | None:
        """Return the same as ONNX, `raw` float32 [N, width] → `answer` float32 [N, P]; None where nothing is to do."""
        if self.kind == "value":
            return None
        raw = argument(Tensor(np.float32, ("N", width)))
        return build({RAW: raw}, {ANSWER: self._answer(raw)})

    def _calibrated(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self.bias:
            return raw
        logits = np.log(np.maximum(raw, np.float32(_LEAST))) * np.float32(self.slope)
        logits += np.array(self.bias, dtype=np.float32)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        calibrated: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return calibrated

    def _answer(self, raw: Var) -> Var:
        if self.kind == "score":
            shares = op.div(raw, op.const(np.array(self.thresholds, dtype=np.float32)))
            return op.reduce_max(shares, axes=[1], keepdims=1)
        shares = raw
        if self.bias:
            logits = op.mul(op.log(op.max([raw, op.const(np.float32(_LEAST))])), op.const(np.float32(self.slope)))
            shares = op.softmax(op.add(logits, op.const(np.array(self.bias, dtype=np.float32))), axis=1)
        if self.kind == "probability":
            return op.gather(shares, op.const(np.array([1], dtype=np.int64)), axis=1)
        code = op.cast(op.arg_max(shares, axis=1, keepdims=1), to=np.float32)
        return op.concat([code, shares], axis=1)
