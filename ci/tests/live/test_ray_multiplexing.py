"""What Ray's guide to multiplexing and this tutorial say of Ray, on the running Ray 2.60."""

import asyncio

import pytest
from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Probe:
    """Keeps one model, and notes which ones were deleted."""

    def __init__(self):
        self.deleted = []

    @serve.multiplexed(max_num_models_per_replica=1)
    async def get_model(self, model_id: str):
        class Model:
            def __del__(model):
                self.deleted.append(model_id)

        return Model()

    async def load(self) -> tuple[str, list[str]]:
        """Load the request's model. Returns its id, and those deleted so far."""
        model_id = serve.get_multiplexed_model_id()
        await self.get_model(model_id)
        return model_id, list(self.deleted)

    async def model_id(self) -> str:
        return serve.get_multiplexed_model_id()


@serve.deployment(ray_actor_options={"num_cpus": 0}, num_replicas=2, max_ongoing_requests=1)
class Busy:
    """Takes one request at a time, and says which replica it is."""

    @serve.multiplexed(max_num_models_per_replica=1)
    async def get_model(self, model_id: str) -> str:
        return model_id

    async def work(self, seconds: float) -> str:
        await self.get_model(serve.get_multiplexed_model_id())
        await asyncio.sleep(seconds)
        return serve.get_replica_context().replica_id.unique_id


@pytest.fixture(scope="module")
def probe(live_store):
    yield serve.run(Probe.bind(), name="probe", route_prefix=None)
    serve.delete("probe")


@pytest.fixture
def busy(live_store):
    yield serve.run(Busy.bind(), name="busy", route_prefix=None)
    serve.delete("busy")


def call(method, *args):
    return method.remote(*args).result(timeout_s=60)


def test_eviction_calls_del_and_the_garbage_collector_calls_it_again(probe):
    assert call(probe.options(multiplexed_model_id="a").load) == ("a", [])
    model_id, deleted = call(probe.options(multiplexed_model_id="b").load)
    assert model_id == "b"
    assert deleted == ["a", "a"]


def test_a_request_without_an_id_is_a_normal_request_until_it_asks_the_cache(probe):
    assert call(probe.model_id) == ""
    with pytest.raises(ValueError, match="The model ID cannot be empty"):
        call(probe.load)


def test_a_model_spills_to_another_replica_only_when_its_own_is_busy(busy):
    handle = busy.options(multiplexed_model_id="a")
    home = call(handle.work, 4)  # seconds: the router has heard of the model when it ends
    assert {call(handle.work, 0) for _ in range(20)} == {home}
    both = [handle.work.remote(5) for _ in range(2)]  # for longer than the router waits for home
    assert len({answer.result(timeout_s=60) for answer in both}) == 2
