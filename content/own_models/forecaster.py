"""An ONNX graph that forecasts, of whatever kind of model it was made."""

import re
import threading
from collections.abc import Sequence

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from forecast_service.errors import CorruptModelError
from forecast_service.model import HORIZON, LAGS, Forecast

TRIAL_TIMEOUT_S = 5  # for two forecasts, which take microseconds: only to tell a graph without end
NOWHERE = "/dev/null"  # no folder: by default, a graph's weights may lie in the working directory
SESSION_BYTES, BYTES_PER_BYTE = 150_000, 4.6  # of memory: a session, and each byte of its graph
ERRORS = tuple(  # of onnxruntime: they have no class in common but Exception
    kind
    for kind in vars(onnxruntime_pybind11_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)
SOURCE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:/\S+:\d+ .*?\) (?=[A-Z]))?", re.DOTALL)


class UnusableGraphError(ValueError):
    """A graph does not forecast LAGS values into HORIZON, or onnxruntime cannot run it."""


class OnnxForecaster:
    """A graph from counts, float32 of shape (n, LAGS), to forecasts, float32 of (n, HORIZON)."""

    def __init__(
        self, graph: bytes, half_width: np.ndarray, customer_id: str = "", version: str = ""
    ):
        """Open a graph, and try it on two histories; `half_width` (HORIZON,) is the interval's.

        Raises:
            UnusableGraphError: if the graph wants operators that onnxruntime does not have, weights
                that lie outside of it, other shapes or types; if it takes TRIAL_TIMEOUT_S; if what
                it forecasts is not finite.
        """
        self.customer_id, self.version = customer_id, version  # of the artifact it was read from
        self.graph, self.half_width = graph, half_width
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # replicas share the cores
        options.enable_cpu_mem_arena = False  # an arena a model would keep more than its weights
        options.log_severity_level = 4  # errors are raised
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", NOWHERE
        )
        try:
            self._session = onnxruntime.InferenceSession(
                graph, options, providers=["CPUExecutionProvider"]
            )
        except ERRORS as error:
            raise UnusableGraphError(_reason(error)) from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        declared = [(value.type, value.shape[1:]) for value in (*inputs, *outputs)]
        if declared != [("tensor(float)", [LAGS]), ("tensor(float)", [HORIZON])]:
            found = ", ".join(f"{value.name} {value.type} {value.shape}" for value in inputs)
            found += f" to {', '.join(f'{out.name} {out.type} {out.shape}' for out in outputs)}"
            raise UnusableGraphError(
                f"it maps {found}; wanted is tensor(float) ['n', {LAGS}] to ['n', {HORIZON}]"
            )
        self._input = inputs[0].name
        self._try()

    @property
    def size_bytes(self) -> int:
        """Bytes of memory, as for trees, which take the most for each byte of their graph."""
        return SESSION_BYTES + round(BYTES_PER_BYTE * len(self.graph))

    def predict(self, lags: np.ndarray | Sequence[float]) -> Forecast:
        """Forecast with an interval, as forecast_service.model.ForecastModel.predict does.

        Raises:
            CorruptModelError: if the graph fails at this history, or its forecast is not finite.
        """
        try:
            forecast = self._run(np.asarray(lags, float))
        except ERRORS as error:
            reason = f"the model of {self.customer_id} fails at this history: {_reason(error)}"
            raise CorruptModelError(reason) from None
        if not np.isfinite(forecast).all():
            raise CorruptModelError(f"the model of {self.customer_id} has no finite forecast here")
        return Forecast.around(forecast, self.half_width.astype(float))

    def _run(self, lags: np.ndarray, options: onnxruntime.RunOptions | None = None) -> np.ndarray:
        histories = lags.reshape(-1, LAGS).astype(np.float32)
        (forecast,) = self._session.run(None, {self._input: histories}, options)
        return forecast.astype(float).reshape(*lags.shape[:-1], HORIZON)

    def _try(self) -> None:
        """Raise UnusableGraphError unless the graph forecasts."""
        histories = np.array([np.arange(1.0, LAGS + 1), np.ones(LAGS)])
        options = onnxruntime.RunOptions()
        late = threading.Timer(TRIAL_TIMEOUT_S, setattr, (options, "terminate", True))
        late.start()
        try:
            forecast = self._run(histories, options)
        except ERRORS as error:
            raise UnusableGraphError(_reason(error)) from None
        finally:
            late.cancel()
        if not np.isfinite(forecast).all():
            raise UnusableGraphError("a number that it forecasts is not finite")


def _reason(error: Exception) -> str:
    """Return what onnxruntime says, without where in its source it says so."""
    reason = SOURCE.sub("", str(error)).partition("\n")[0].strip()
    if "External data path" in reason:
        return f"it keeps weights in another file; save all in one ({reason})"
    if "terminate flag" in reason:
        return f"two forecasts took more than {TRIAL_TIMEOUT_S} s"
    return reason
