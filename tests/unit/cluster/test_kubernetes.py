"""The manifests, by Kubernetes' schemas, models of the custom resources, and each other; there is no server here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from conserve.config import load_settings
from tests.unit.cluster.conftest import REPOSITORY
from tests.unit.cluster.kuberay import Kustomization, PodMonitor, RayService

FOLDER = REPOSITORY / "cluster" / "kubernetes"
KUBERNETES = "1.33"
CUSTOM = {"RayService": RayService, "PodMonitor": PodMonitor, "Kustomization": Kustomization}


def read_documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


DOCUMENTS = {
    f"{path.name}:{document['kind']}/{document.get('metadata', {}).get('name')}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in read_documents(path)
}


def find(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = (
        one for one in DOCUMENTS.values() if one["kind"] == kind and (name is None or one["metadata"]["name"] == name)
    )
    return found


def pods() -> Iterator[dict[str, Any]]:
    """The specs of all pods."""
    for template in RayService.model_validate(find("RayService")).spec.rayClusterConfig.templates():
        yield template.spec
    yield find("StatefulSet")["spec"]["template"]["spec"]


def validate_pod(template: dict[str, Any]) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]}}
    kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)


@pytest.fixture
def service() -> RayService:
    return RayService.model_validate(find("RayService"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_document_is_what_its_kind_allows(name: str) -> None:
    document = DOCUMENTS[name]
    if document["kind"] in CUSTOM:
        CUSTOM[document["kind"]].model_validate(document)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_pods_of_the_ray_cluster_are_what_kubernetes_allows(service: RayService) -> None:
    for template in service.spec.rayClusterConfig.templates():
        validate_pod(template.model_dump(exclude_unset=True))


def test_a_wrong_field_is_refused() -> None:
    document = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())
    document["spec"]["rayClusterConfig"]["gcsFaultTolerance"] = {}
    with pytest.raises(ValidationError, match="gcsFaultTolerance"):
        RayService.model_validate(document)
    template = document["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    template["spec"]["containers"][0]["livenessProbe"]["path"] = "/"
    with pytest.raises(kubernetes_validate.ValidationError, match="'path' was unexpected"):
        validate_pod(template)


def test_the_embedded_configuration_is_one_of_ray_serve_and_of_ours(service: RayService) -> None:
    content = yaml.safe_load(service.spec.serveConfigV2)
    (application,) = ServeDeploySchema.model_validate(content).applications
    assert application.import_path == "deployments.app:build_app"
    settings = load_settings(application.args, {"CONSERVE_JOBS__REDIS_URL": "redis://:p@redis:6379/0"})
    (workers,) = service.spec.rayClusterConfig.workerGroupSpecs
    (container,) = workers.template.spec["containers"]
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert settings.replicas * settings.engine.tensor_parallel_size == workers.replicas * gpus
    gib = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    assert isinstance(settings.engine.host_kv_gib, float)
    assert settings.engine.host_kv_gib <= gib / 2
    assert settings.files_url in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_versions_are_those_of_the_lock(service: RayService) -> None:
    assert service.spec.rayClusterConfig.rayVersion == version("ray")


def test_every_pod_is_unprivileged_and_probed() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            mounted = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in writable}
            assert mounted in ({"/tmp", "/home/conserve", "/dev/shm"}, {"/run/conserve"})
            assert {"livenessProbe", "readinessProbe", "resources"} <= container.keys()


def test_what_pods_refer_to_is_there() -> None:
    maps = {one["metadata"]["name"] for one in DOCUMENTS.values() if one["kind"] == "ConfigMap"}
    claims = {one["metadata"]["name"] for one in DOCUMENTS.values() if one["kind"] == "PersistentVolumeClaim"}
    secrets = {one["metadata"]["name"]: one["stringData"] for one in DOCUMENTS.values() if one["kind"] == "Secret"}
    for pod in pods():
        volumes = {volume["name"] for volume in pod.get("volumes", [])} | {"data"}
        for volume in pod.get("volumes", []):
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in claims | {None}
            assert volume.get("configMap", {}).get("name") in maps | {None}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            for source in container.get("envFrom", []):
                assert source["secretRef"]["name"] in secrets
            names = [variable["name"] for variable in container["env"]]
            for variable in container["env"]:
                if "valueFrom" in variable:
                    key = variable["valueFrom"]["secretKeyRef"]
                    assert key["key"] in secrets[key["name"]]
                else:  # Kubernetes knows only what stands before it.
                    before = names[: names.index(variable["name"])]
                    assert set(re.findall(r"\$\((\w+)\)", variable["value"])) <= set(before)
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = container.get(probe, {})
                port = (asked.get("httpGet") or asked.get("tcpSocket") or {}).get("port")
                assert isinstance(port, int | None) or port in ports


def test_settings_in_the_secrets_and_pods_are_settings(service: RayService) -> None:
    secret = find("Secret", "conserve")["stringData"]
    (container,) = service.spec.rayClusterConfig.workerGroupSpecs[0].template.spec["containers"]
    plain = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    settings = load_settings({}, {**secret, **plain})
    assert settings.jobs.redis_url == "redis://conserve:$(QUEUE_PASSWORD)@redis:6379/0"
    assert list(settings.tenants) == ["acme"]


def test_redis_keeps_what_it_is_given_and_is_where_it_is_looked_for(service: RayService) -> None:
    stateful = find("StatefulSet")["spec"]
    (container,) = stateful["template"]["spec"]["containers"]
    options = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert options["--dir"] == "/data"
    assert (mounts["/data"], mounts["/etc/conserve"], mounts["/run/conserve"]) == ("data", "config", "run")
    assert stateful["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
    megabytes = int(options["--maxmemory"].removesuffix("mb"))
    assert megabytes < 1024 * int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    headless = find("Service")
    assert headless["spec"]["selector"].items() <= stateful["template"]["metadata"]["labels"].items()
    address = f"{headless['metadata']['name']}:{headless['spec']['ports'][0]['port']}"
    of_ray = service.spec.rayClusterConfig.gcsFaultToleranceOptions
    assert (of_ray.redisAddress, of_ray.redisUsername.value) == (address, "ray")
    assert of_ray.redisPassword.valueFrom is not None
    of_server = {one["name"]: one["valueFrom"]["secretKeyRef"]["key"] for one in container["env"]}
    assert of_server["RAY_REDIS_PASSWORD"] == of_ray.redisPassword.valueFrom.secretKeyRef.key


def test_the_server_of_redis_has_the_users_of_the_repository() -> None:
    folder = REPOSITORY / "cluster" / "redis"
    found = find("ConfigMap", "redis")["data"]
    assert found == {path.name: path.read_text() for path in folder.iterdir()}


def test_prometheus_finds_every_pod_of_ray(service: RayService) -> None:
    monitor = PodMonitor.model_validate(find("PodMonitor"))
    for template in service.spec.rayClusterConfig.templates():
        assert monitor.spec.selector.matchLabels.items() <= template.metadata.labels.items()
        ports = {port["name"] for port in template.spec["containers"][0]["ports"]}
        assert {endpoint.port for endpoint in monitor.spec.podMetricsEndpoints} <= ports


def test_all_manifests_are_applied_but_the_example() -> None:
    kustomization = Kustomization.model_validate(find("Kustomization"))
    there = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "secrets.example.yaml"}
    assert set(kustomization.resources) == there
    images = {container["image"] for pod in pods() for container in pod["containers"]}
    assert {image.name for image in kustomization.images} <= {image.split(":")[0] for image in images}
