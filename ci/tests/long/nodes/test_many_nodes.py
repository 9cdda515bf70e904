"""The fleet and the service on a cluster of several nodes, one of which is lost and comes back."""

from collections import Counter

from drill import RIGHT, WORKERS, WRONG, worker_ids
from lab.traffic import CONNECTION_ERROR


def test_every_worker_trains_and_the_head_does_not(cluster, trained):
    assert set(trained) == worker_ids(cluster)


def test_every_worker_has_one_replica_and_the_head_none(drill):
    placed = drill.placed["before"]
    assert len(placed) == WORKERS and set(placed.values()) == {1}


def test_the_head_and_every_worker_have_a_proxy(cluster, drill):
    assert drill.proxies == {cluster.head_node.node_id, *drill.placed["before"]}


def test_every_forecast_is_that_of_the_stored_model_to_the_byte(drill, customers):
    answers = drill.swept["before"]
    assert Counter(answer.attempts[0] for answer in answers) == {RIGHT: len(customers)}
    assert len({answer.replica for answer in answers}) == WORKERS, "a replica was not asked"


def test_no_forecast_is_wrong_while_a_node_is_away(drill):
    assert not [answer for answer in drill.clients if WRONG in answer.attempts]


def test_a_client_that_retries_once_loses_nothing(drill):
    failed = [answer for answer in drill.clients if answer.attempts[0] != RIGHT]
    assert failed, "the lost node had no request at work: nothing was tested"
    assert not [answer for answer in failed if answer.attempts[-1] != RIGHT]


def test_without_a_retry_a_request_is_answered_or_fails_at_once(drill):
    errors = set(drill.load.status.tolist()) - {"200", "500", "503", CONNECTION_ERROR}
    assert not errors and (drill.load.status == "200").mean() > 0.9


def test_the_pool_is_whole_again_when_the_node_is_back(cluster, drill):
    assert set(drill.placed["without it"]) < set(drill.placed["before"])
    assert drill.placed["after"] == Counter(worker_ids(cluster))


def test_every_forecast_is_right_after_the_return(drill, customers):
    answers = drill.swept["after"]
    assert Counter(answer.attempts[0] for answer in answers) == {RIGHT: len(customers)}
    assert len({answer.replica for answer in answers}) == WORKERS, "the new replica is not asked"
