"""What only a replica of Ray Serve knows of a request, and what a handle may raise of its own."""

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from forecast_service.customer_ids import check_customer_id
from forecast_service.proxy_guard import UNAVAILABLE

NO_ANSWER = BackPressureError, RayActorError  # no replica took a call of a handle, or it died
TRY_AGAIN = {"status": 503, "detail": UNAVAILABLE}  # a HandleProblem's fields


def model_id() -> str:
    """Return the model id of the request at work. Raises InvalidCustomerIdError."""
    return check_customer_id(serve.get_multiplexed_model_id())


def answer_headers(hit: bool, elapsed_s: float) -> dict[str, str]:
    """Return headers that say who answers, how long it took, and if the model was in memory."""
    outcome = "hit" if hit else "miss"
    return {
        "Server-Timing": f"cache;desc={outcome};dur={elapsed_s * 1000:.1f}",
        "X-Replica-Id": serve.get_replica_context().replica_id.unique_id,
    }
