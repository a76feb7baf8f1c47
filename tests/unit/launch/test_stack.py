"""What `up`, `undo` and `down` start, stop and leave alone, with a fake Serve, a fake Redis and a fake Ray head."""

from __future__ import annotations

import pytest
import yaml
from filelock import FileLock

from conserve.jobs.errors import UnsuitableServerError
from conserve.launch import stack as stack_module
from conserve.launch.ports import find_free_ports
from conserve.launch.processes import STACK_ID_VARIABLE, find_processes
from conserve.launch.ray_head import RayHeadError
from conserve.launch.record import StackError, read_record
from conserve.launch.serve_api import ServeApi, ServeApiError, ServeUnreachableError
from tests.unit.launch.conftest import World


def test_own_stack_comes_up_and_goes_down(world: World) -> None:
    environ = {"CONSERVE_REPLICAS": "2", "CONSERVE_HTTP__FINISH_REQUESTS_S": "7"}
    stack = world.stack(**environ, CONSERVE_CACHE="/c", CONSERVE_TEST_X="1", OTHER="o")
    assert stack.up().dashboard_url == world.serve.url
    record = read_record(world.state)
    assert record is not None
    assert (record.dashboard_url, record.finish_requests_s) == (world.serve.url, 7.0)
    ours = {name: value for name, value in world.head_environ.items() if name.startswith("CONSERVE_")}
    own = {"CONSERVE_GRPC_HOST": "127.0.0.1", STACK_ID_VARIABLE: record.stack_id}
    assert ours == {"CONSERVE_CACHE": "/c", "CONSERVE_TEST_X": "1", **own}
    assert world.head_environ["OTHER"] == "o"
    assert world.redis_runs
    assert stack.down()
    assert (find_processes(record.stack_id), world.redis_runs, read_record(world.state)) == ([], False, None)
    assert not stack.down()


@pytest.mark.parametrize(("taken", "option"), [("http_port", "--port"), ("grpc_port", "--grpc-port")])
def test_a_port_that_is_taken_is_named(world: World, monkeypatch: pytest.MonkeyPatch, taken: str, option: str) -> None:
    content = yaml.safe_load(world.config.read_text()) | {"grpc_options": {"grpc_servicer_functions": ["m.f"]}}
    world.config.write_text(yaml.safe_dump(content))
    stack = world.stack()
    port = getattr(stack.config, taken)
    monkeypatch.setattr(stack_module, "is_free", lambda one, host: one != port)
    with pytest.raises(StackError, match=f"Port {port} .*{option}"):
        stack.up()
    assert world.head_environ == {}


def test_a_redis_that_will_not_do_is_an_error_before_anything_else_starts(world: World) -> None:
    world.redis_trouble = UnsuitableServerError("Redis holds batches of schema version '1'.")
    stack = world.stack()
    with pytest.raises(StackError, match="schema version"):
        stack.up()
    assert world.head_environ == {}
    assert stack.undo()
    assert not world.redis_runs


def test_a_redis_that_is_not_reached_from_here_is_only_said(world: World) -> None:
    world.redis_trouble = "Connection refused"
    said: list[str] = []
    world.stack().up(said.append)
    assert [line for line in said if "Connection refused" in line]


# Another's cluster.


def test_deployment_beside_other_applications_is_refused(world: World) -> None:
    world.serve.run("theirs", "x:app")
    stack = world.stack(world.serve.url)
    with pytest.raises(StackError, match=r"theirs.*serve deploy"):
        stack.up()
    assert not stack.undo()
    assert (world.serve.calls, world.redis_runs, read_record(world.state)) == ([], False, None)


@pytest.mark.parametrize("import_path", ["x:app", None])
def test_another_s_application_of_our_name_is_not_replaced(world: World, import_path: str | None) -> None:
    world.serve.run("conserve", import_path)
    with pytest.raises(StackError, match="runs other applications"):
        world.stack(world.serve.url).up()
    assert world.serve.calls == []


def test_refused_deployment_cleans_up_nothing_on_the_cluster(world: World) -> None:
    world.serve.put_status = 400
    stack = world.stack(world.serve.url)
    with pytest.raises(ServeApiError, match="400"):
        stack.up()
    assert world.redis_runs
    assert stack.undo()
    assert (world.serve.calls, world.redis_runs, read_record(world.state)) == (["PUT"], False, None)


def test_failed_deployment_is_removed_from_the_cluster(world: World) -> None:
    world.serve.deployed_status = "DEPLOY_FAILED"
    stack = world.stack(world.serve.url)
    with pytest.raises(StackError, match="did not start"):
        stack.up()
    assert stack.undo()
    assert (world.serve.calls, world.serve.applications, read_record(world.state)) == (["PUT", "DELETE"], {}, None)


def test_the_reason_of_a_failed_deployment_is_that_of_its_replica(world: World) -> None:
    world.serve.deployed_status = "DEPLOY_FAILED"
    world.serve.deployments = {
        "Ingress": {"status": "HEALTHY", "message": "ValueError: of long ago"},
        "Replica": {
            "status": "DEPLOY_FAILED",
            "message": "Traceback ...\nValueError: engine.x: set less\nRetried 3 times.",
        },
    }
    stack = world.stack(world.serve.url)
    with pytest.raises(StackError, match=r"did not start: ValueError: engine\.x: set less"):
        stack.up()
    assert stack.undo()


@pytest.mark.parametrize("put_status", [200, 400])
def test_failed_redeployment_leaves_what_was_on_the_cluster(world: World, put_status: int) -> None:
    world.serve.run("conserve")
    world.redis_runs = True
    record = world.record(dashboard_url=world.serve.url, owns_ray=False)
    world.serve.deployed_status, world.serve.put_status = "DEPLOY_FAILED", put_status
    stack = world.stack(world.serve.url + "/")
    with pytest.raises((StackError, ServeApiError)):
        stack.up()
    assert not stack.undo()
    assert world.serve.calls == ["PUT"]
    assert world.redis_runs
    kept = read_record(world.state)
    assert kept is not None
    assert kept.stack_id == record.stack_id


def test_down_shuts_serve_down_only_when_our_application_is_alone(world: World) -> None:
    stack = world.stack(world.serve.url)
    stack.up()
    world.serve.run("theirs", "x:app")
    with pytest.raises(StackError, match="theirs"):
        stack.down()
    assert "DELETE" not in world.serve.calls
    assert read_record(world.state) is not None
    assert world.redis_runs
    del world.serve.applications["theirs"]
    assert stack.down()
    assert world.serve.calls == ["PUT", "DELETE"]
    assert (read_record(world.state), world.redis_runs) == (None, False)


def test_down_calls_nothing_when_our_application_is_gone(world: World) -> None:
    world.serve.run("theirs", "x:app")
    world.record(dashboard_url=world.serve.url, owns_ray=False)
    assert world.stack().down()
    assert (world.serve.calls, read_record(world.state)) == ([], None)


def test_down_that_another_s_cluster_refuses_is_an_error(world: World) -> None:
    world.stack(world.serve.url).up()
    world.serve.delete_status = 500
    with pytest.raises(StackError, match="was not removed"):
        world.stack().down()
    assert read_record(world.state) is not None


def test_down_of_a_cluster_that_does_not_answer_names_the_record(world: World) -> None:
    world.record(dashboard_url=f"http://127.0.0.1:{find_free_ports(1)[0]}", owns_ray=False)
    with pytest.raises(StackError, match=r"stack\.json"):
        world.stack().down()
    assert read_record(world.state) is not None


# Our own Ray.


@pytest.mark.parametrize("dashboard_url", [None, "dead"])
def test_what_a_killed_start_left_is_ended_first(world: World, dashboard_url: str | None) -> None:
    if dashboard_url is not None:
        dashboard_url = f"http://127.0.0.1:{find_free_ports(1)[0]}"
    left = world.record(dashboard_url=dashboard_url)
    world.start_process(left.stack_id)
    world.redis_runs = True
    world.serve.deployed_status = "DEPLOY_FAILED"
    stack = world.stack()
    with pytest.raises(StackError, match="did not start"):
        stack.up()
    assert find_processes(left.stack_id) == []
    new = read_record(world.state)
    assert new is not None
    assert new.stack_id != left.stack_id
    assert stack.undo()
    assert (find_processes(new.stack_id), world.redis_runs, read_record(world.state)) == ([], False, None)


def test_leftovers_go_even_when_the_start_is_refused(world: World) -> None:
    left = world.record()
    world.start_process(left.stack_id)
    world.redis_runs = True
    world.serve.run("theirs", "x:app")
    stack = world.stack(world.serve.url)
    with pytest.raises(StackError, match="theirs"):
        stack.up()
    stack.undo()
    assert (find_processes(left.stack_id), world.redis_runs, world.serve.calls) == ([], False, [])


@pytest.mark.parametrize("error", [RayHeadError("no"), KeyboardInterrupt()])
def test_head_that_does_not_start_is_undone(world: World, error: BaseException) -> None:
    world.head_error = error
    stack = world.stack()
    with pytest.raises(type(error)):
        stack.up()
    assert stack.undo()
    assert (find_processes(world.head_environ[STACK_ID_VARIABLE]), world.redis_runs) == ([], False)
    assert read_record(world.state) is None


def test_failed_redeployment_leaves_a_healthy_stack_alone(world: World) -> None:
    world.stack().up()
    record = read_record(world.state)
    assert record is not None
    world.serve.put_status = 400
    again = world.stack()
    with pytest.raises(ServeApiError):
        again.up()
    assert not again.undo()
    assert len(find_processes(record.stack_id)) == 1
    assert world.redis_runs
    assert read_record(world.state) == record
    assert "DELETE" not in world.serve.calls


def test_address_that_differs_from_a_living_stack_s_is_refused(world: World) -> None:
    world.stack().up()
    with pytest.raises(StackError, match=world.serve.url):
        world.stack("http://127.0.0.1:1").up()
    world.stack(world.serve.url + "/").up()
    assert len(world.started) == 1


def test_record_stays_while_a_process_does_not_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.stack().up()
    monkeypatch.setattr("conserve.launch.teardown.end_processes", lambda stack_id: 1)
    with pytest.raises(StackError, match=str(world.started[0].pid)):
        world.stack().down()
    assert read_record(world.state) is not None


def test_down_of_our_own_ray_needs_no_answer(world: World) -> None:
    world.stack().up()
    world.serve.delete_status = 500
    assert world.stack().down()
    assert find_processes(world.head_environ[STACK_ID_VARIABLE]) == []
    assert read_record(world.state) is None


def test_second_up_at_the_same_time_is_refused(world: World) -> None:
    with FileLock(world.state / "up.lock"), pytest.raises(StackError, match="Another process"):
        world.stack().up()
    assert world.started == []


def test_what_is_not_ray_is_said_so(world: World) -> None:
    world.serve.applications = []
    with pytest.raises(ServeUnreachableError, match="is not Ray's dashboard"):
        ServeApi(world.serve.url, {"RAY_AUTH_TOKEN": "t"}).read_applications()
    with pytest.raises(ServeUnreachableError, match="does not answer"):
        ServeApi("127.0.0.1:8265", {"RAY_AUTH_TOKEN": "t"}).read_applications()


def test_what_does_not_leave_is_waited_for_as_long_as_its_requests_may_take(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conserve.launch.teardown.DRAIN_EXTRA_S", 0.5)
    world.record(dashboard_url=world.serve.url, owns_ray=False, finish_requests_s=1.0)
    world.serve.applications = {"conserve": {"status": "DELETING"}}
    world.serve.keeps_applications = True
    with pytest.raises(StackError, match=r"is not gone after 1\.5 s: it is still shutting down"):
        world.stack().down()
