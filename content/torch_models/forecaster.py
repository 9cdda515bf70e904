"""A PyTorch forecaster for a district: fit it, predict with an interval, score it on unseen days.

The days are cut, and the scores are made, as in forecast_service/model.py.
"""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from forecast_service.model import (
    CALIBRATION_DAYS,
    COVERAGE,
    FLOOR,
    HORIZON,
    LAGS,
    Forecast,
    Scores,
    check_series,
    mean_scores,
)
from forecast_service.model import score as score_series

HIDDEN = 768  # units a layer: a model of 2.5 MB, heavy enough that loading it takes a while
STEPS, CHECK_EVERY = 200, 50  # gradient steps, and how often the calibration days are asked
BATCH_SIZE = 128  # windows
LEARNING_RATE = 1e-3  # at the first step; it falls to 0 on half a cosine


class TorchForecaster(nn.Module):
    """A linear map from the last LAGS days to the next HORIZON, and a perceptron that corrects it.

    Each window is standardized by its own mean and spread, and its forecast scaled back, as in
    RevIN (Kim et al., 2022, "Reversible Instance Normalization for Accurate Time-Series Forecasting
    against Distribution Shift"): one model serves a district's quiet hours and its busy ones. The
    linear part is Linear of Zeng et al., 2023, "Are Transformers Effective for Time Series
    Forecasting?".
    """

    def __init__(self) -> None:
        super().__init__()
        self.customer_id = self.version = ""  # of the artifact that it was read from
        self.linear = nn.Linear(LAGS, HORIZON)
        layers = nn.Linear(LAGS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()
        self.correction = nn.Sequential(*layers, nn.Linear(HIDDEN, HORIZON))
        self.register_buffer("half_width", torch.zeros(HORIZON))  # of the interval, in spreads

    @property
    def size_bytes(self) -> int:
        """Bytes of its numbers, the half-width's included."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def forward(self, lags: Tensor) -> Tensor:
        """Forecast people, shape (..., HORIZON), from float32 counts (..., LAGS), oldest first.

        Nothing is below FLOOR.
        """
        level, scale = lags.mean(-1, keepdim=True), spread(lags)
        x = (lags - level) / scale
        return (level + scale * (self.linear(x) + self.correction(x))).clamp_min(FLOOR)

    @torch.inference_mode()
    def predict(self, lags: np.ndarray) -> Forecast:
        """Forecast with an interval, as forecast_service.model.ForecastModel.predict does."""
        window = torch.as_tensor(lags, dtype=torch.float32)
        forecast, reach = self(window), spread(window) * self.half_width
        return Forecast.around(forecast.double().numpy(), reach.double().numpy())


def spread(lags: Tensor) -> Tensor:
    """Return each window's standard deviation, shape (..., 1): 1 person or more, to divide by."""
    return lags.std(-1, keepdim=True).clamp_min(1)


def windows(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (lags, future) pairs of counts (series, days): (series, n, LAGS or HORIZON)."""
    both = counts.unfold(-1, LAGS + HORIZON, 1)
    return both[..., :LAGS], both[..., LAGS:]


def fit(counts: np.ndarray, seed: int) -> TorchForecaster:
    """Fit a district's counts, shape (series, days), and keep what did best on later days.

    Those later days, the last CALIBRATION_DAYS, also give the interval. Errors are absolute, in
    units of a window's spread: no series outweighs another. The same seed, number of threads and
    processor give the same model; the global random state stays as it was.

    Raises:
        ValueError: as forecast_service.model.fit, naming the series.
    """
    checked = [check_series(f"series {row}", series) for row, series in enumerate(counts)]
    known = torch.as_tensor(np.array(checked, np.float32))
    lags, future = windows(known[:, :-CALIBRATION_DAYS])
    later_lags, later_future = windows(known[:, -CALIBRATION_DAYS - LAGS :])
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
        torch.manual_seed(seed)
        model = TorchForecaster()
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)

    def errors(lags: Tensor, future: Tensor) -> Tensor:
        return (future - model(lags)).abs() / spread(lags)

    best_error, best_weights = math.inf, {}
    for step in range(1, STEPS + 1):
        row, day = (torch.randint(n, (BATCH_SIZE,), generator=draw) for n in lags.shape[:2])
        optimizer.zero_grad()
        errors(lags[row, day], future[row, day]).mean().backward()
        optimizer.step()
        schedule.step()
        if step % CHECK_EVERY == 0:
            with torch.no_grad():
                later_errors = errors(later_lags, later_future)
            if later_errors.mean().item() < best_error:
                best_error = later_errors.mean().item()
                best_weights = copy.deepcopy(model.state_dict())
                best_weights["half_width"] = quantile(later_errors)
    model.load_state_dict(best_weights)
    return model.eval().requires_grad_(False)


def quantile(errors: Tensor) -> Tensor:
    """Return, for each step ahead, what a share COVERAGE of errors (..., HORIZON) stays under."""
    ranked = errors.reshape(-1, HORIZON).sort(dim=0).values
    return ranked[math.ceil(COVERAGE * (len(ranked) + 1)) - 1]


def score(model: TorchForecaster, counts: np.ndarray) -> Scores:
    """Return the means over counts (series, days) of what forecast_service.model.score returns."""
    return mean_scores(score_series(model, series) for series in counts)
