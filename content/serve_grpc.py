"""The gRPC door of the forecast service, as forecast.proto has it.

    serve run serve_grpc:app --name grpc --route-prefix /grpc

Wants Serve started with the generated servicer (see the notebook), and the application of
serve_forecast_multiplex.py under its default name.
"""

import grpc
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext

import forecast_pb2
from http_contract import HANDLE_ERRORS, describe

GRPC_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    502: grpc.StatusCode.DATA_LOSS,
    503: grpc.StatusCode.UNAVAILABLE,
}


@serve.deployment(ray_actor_options={"num_cpus": 0})  # it only waits
class GrpcService:
    """Passes requests on to the forecasters. Its methods have the names of forecast.proto."""

    def __init__(self):
        self.forecasters = serve.get_app_handle("default")

    async def Forecast(
        self, request: forecast_pb2.ForecastRequest, grpc_context: RayServegRPCContext
    ) -> forecast_pb2.ForecastResponse:
        """Forecast for the customer in the metadata key `multiplexed_model_id`."""
        customer_id = serve.get_multiplexed_model_id()
        forecaster = self.forecasters.options(multiplexed_model_id=customer_id)
        try:
            answer = await forecaster.forecast.remote(list(request.sequence_data))
        except HANDLE_ERRORS as error:
            problem = describe(error)
            grpc_context.set_code(GRPC_CODES[problem["status"]])
            grpc_context.set_details(problem["detail"])
            raise
        return forecast_pb2.ForecastResponse(**answer)


app = GrpcService.bind()
