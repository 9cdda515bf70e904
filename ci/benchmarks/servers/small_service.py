"""The tutorial's service, with a cache of as many models as the other servers have.

Its cache is a literal, for a reader to change. This changes it in a copy in the working directory,
where Ray's processes find it.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from forecast_service.settings import Settings

SERVICE, COPY = "serve_forecast_multiplex", "resized_service"
CACHE = "max_num_models_per_replica={}"
LITERAL = 4

before, found, after = Path(find_spec(SERVICE).origin).read_text().partition(CACHE.format(LITERAL))
if not found:
    raise SystemExit(f"{SERVICE} has no {CACHE.format(LITERAL)}")
resized = before + CACHE.format(Settings().models_per_replica) + after
Path(f"{COPY}.py").write_text(resized)
served = import_module(COPY)
ForecastingService, app = served.ForecastingService, served.app
