"""Says which name of Ray is gone when a version moves it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import ray
from ray.serve.llm.deployment import LLMServer
from ray.serve.llm.ingress import OpenAiIngress
from ray.serve.request_router import LocalityMixin, MultiplexMixin, RequestRouter

from conserve.engine.vllm_compat import AsyncLLM
from deployments import ray_compat
from deployments.ray_cluster import find_cluster


def test_version_is_a_tested_one() -> None:
    assert ray.__version__.startswith("2.60."), f"Ray {ray.__version__}: run all tests with it, then change this"


def test_a_cluster_has_a_name() -> None:
    assert callable(ray.runtime_context.RuntimeContext.get_session_name)
    assert find_cluster() is None, "no cluster runs here"


def test_server_methods_are_overridden_as_they_are() -> None:
    for name in ("chat", "completions"):
        method = getattr(LLMServer, name)
        assert inspect.iscoroutinefunction(method), f"LLMServer.{name} is no coroutine function any more"
        assert list(inspect.signature(method).parameters) == ["self", "request", "raw_request_info"]


def test_server_keeps_its_engine_under_this_name() -> None:
    server = LLMServer.sync_init.__func__.__code__.co_names
    assert "_init_shared" in server, "LLMServer is built otherwise; see ray_compat.find_engine"
    assert "engine" in LLMServer._init_shared.__code__.co_names


def test_engine_keeps_its_client_under_this_name() -> None:
    assert "_engine_client" in ray_compat.VLLMEngine.start.__code__.co_names
    assert isinstance(AsyncLLM.errored, property)
    client = SimpleNamespace(errored=True)
    assert ray_compat.has_died(SimpleNamespace(_engine_client=client))
    assert not ray_compat.has_died(SimpleNamespace(_engine_client=None))


def test_front_has_the_routes_we_map() -> None:
    for name in ("models", "model_data", "chat", "completions"):
        assert callable(getattr(OpenAiIngress, name)), f"OpenAiIngress.{name} is gone"


def test_error_has_what_is_shown() -> None:
    error = ray_compat.OpenAIHTTPException(status_code=400, message="m", type="t")
    assert (error.status_code, error.message) == (400, "m")


def test_error_of_a_replica_is_one_for_the_front() -> None:
    from ray.llm._internal.serve.core.ingress import ingress

    assert ingress.ErrorResponse is ray_compat.ErrorResponse


def test_engine_is_started_through_the_method_we_override() -> None:
    names = ray_compat.VLLMEngine.start.__code__.co_names
    assert "_start_async_llm_engine" in names, "Ray's VLLMEngine starts vLLM otherwise; see ServingEngine"
    expected = ["self", "vllm_engine_args", "vllm_engine_config", "placement_group"]
    assert list(inspect.signature(ray_compat.VLLMEngine._start_async_llm_engine).parameters) == expected
    assert "engine_cls" in inspect.signature(LLMServer.__init__).parameters


def test_a_started_engine_s_client_is_found() -> None:
    client = object()
    assert ray_compat.find_client(SimpleNamespace(_engine_client=client)) is client


def test_serve_s_own_router_can_be_asked_for_its_choice() -> None:
    names = list(inspect.signature(ray_compat.PowerOfTwoChoicesRequestRouter.choose_replicas).parameters)
    assert names == ["self", "candidate_replicas", "pending_request"]
    # It needs what these bring.
    mixins = {LocalityMixin, MultiplexMixin, RequestRouter}
    assert mixins <= set(ray_compat.PowerOfTwoChoicesRequestRouter.__mro__)
    for name in ("update_replicas", "select_available_replicas", "on_request_routed", "on_request_completed"):
        assert callable(getattr(RequestRouter, name)), f"RequestRouter.{name} is gone"


def test_answers_come_from_replicas_through_the_method_we_override() -> None:
    method = OpenAiIngress._get_response
    assert list(inspect.signature(method).parameters) == ["self", "body", "call_method", "raw_request"]
    for caller in (OpenAiIngress._process_llm_request, OpenAiIngress.embeddings):
        assert "_get_response" in caller.__code__.co_names, "OpenAiIngress asks replicas otherwise; see ConServeIngress"


def test_replicas_record_what_they_have_to_say_for_routers() -> None:
    assert inspect.iscoroutinefunction(LLMServer.record_routing_stats)
