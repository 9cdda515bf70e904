"""The gRPC endpoint of the forecast service, as forecast.proto has it.

    serve run serve_grpc:app --name grpc --route-prefix /grpc

Wants Serve started with the generated servicer (chapters/03_access.ipynb does it), and the
application of serve_forecast_production.py under its default name. Ray takes messages of up to
2 GB, unless it is started with RAY_SERVE_GRPC_MAX_MESSAGE_SIZE=1048576, or another number of bytes.
"""

import grpc
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext

import forecast_pb2
from forecast_service.replica import NO_ANSWER, TRY_AGAIN
from forecast_service.service import DEPLOYMENT_OPTIONS
from forecast_service.tokens import TENANT_HEADER

GRPC_CODES = {  # of every status in errors.py
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.DATA_LOSS,
    503: grpc.StatusCode.UNAVAILABLE,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@serve.deployment(**DEPLOYMENT_OPTIONS, ray_actor_options={"num_cpus": 0})  # it only waits
class GrpcService:
    """Passes requests on to the forecasters. Its methods have the names of forecast.proto."""

    def __init__(self):
        self.forecasters = serve.get_app_handle("default")

    async def Forecast(
        self, request: forecast_pb2.ForecastRequest, grpc_context: RayServegRPCContext
    ) -> forecast_pb2.ForecastResponse:
        """Forecast for the customer in the metadata key `multiplexed_model_id`.

        Passes the key TENANT_HEADER on, for the forecasters to check.
        """
        customer_id = serve.get_multiplexed_model_id()
        authorization = dict(grpc_context.invocation_metadata()).get(TENANT_HEADER)
        forecaster = self.forecasters.options(multiplexed_model_id=customer_id)
        try:
            answer = await forecaster.answer.remote(list(request.sequence_data), authorization)
        except NO_ANSWER:
            answer = TRY_AGAIN
        if "status" in answer:
            grpc_context.set_code(GRPC_CODES[answer["status"]])
            grpc_context.set_details(answer["detail"])
            return forecast_pb2.ForecastResponse()  # to raise would put a stack trace into the log
        return forecast_pb2.ForecastResponse(**answer)


app = GrpcService.bind()
