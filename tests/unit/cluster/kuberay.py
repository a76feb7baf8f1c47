"""The fields of custom resources that our manifests use, and no others; names and types are those of the Go structs.

KubeRay: ray-operator/apis/ray/v1/rayservice_types.go and raycluster_types.go (master after 1.6). Prometheus operator:
pkg/apis/monitoring/v1/podmonitor_types.go.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Resource(BaseModel):
    """Refuses what it does not know, and converts nothing: `"1"` is no number to Kubernetes."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Resource):
    name: Name | None = None
    labels: dict[str, str] = {}


class SecretKey(Resource):
    name: Name
    key: str


class SecretSource(Resource):
    secretKeyRef: SecretKey  # noqa: N815 - Kubernetes' names here and below


class RedisCredential(Resource):
    value: str | None = None
    valueFrom: SecretSource | None = None  # noqa: N815


class GcsFaultToleranceOptions(Resource):
    redisAddress: str = Field(pattern=r"^[a-z0-9.-]+:\d+$")  # noqa: N815
    redisUsername: RedisCredential  # noqa: N815
    redisPassword: RedisCredential  # noqa: N815


class AuthOptions(Resource):
    mode: Literal["token"]


class PodTemplate(Resource):
    """`spec` is a pod's, which Kubernetes' own schema checks."""

    metadata: Metadata
    spec: dict[str, Any]


class HeadGroup(Resource):
    rayStartParams: dict[str, str]  # noqa: N815
    template: PodTemplate


class WorkerGroup(HeadGroup):
    groupName: Name  # noqa: N815
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)  # noqa: N815
    maxReplicas: int = Field(ge=0)  # noqa: N815


class RayCluster(Resource):
    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    gcsFaultToleranceOptions: GcsFaultToleranceOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: list[WorkerGroup] = Field(min_length=1)  # noqa: N815

    def templates(self) -> list[PodTemplate]:
        """Of all pods."""
        return [group.template for group in (self.headGroupSpec, *self.workerGroupSpecs)]


class RayServiceSpec(Resource):
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: RayCluster  # noqa: N815


class RayService(Resource):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec


class Relabeling(Resource):
    action: Literal["replace"]
    sourceLabels: list[str]  # noqa: N815
    targetLabel: str  # noqa: N815


class PodMetricsEndpoint(Resource):
    port: str
    interval: str = Field(pattern=r"^\d+s$")
    relabelings: list[Relabeling]


class LabelSelector(Resource):
    matchLabels: dict[str, str]  # noqa: N815


class PodMonitorSpec(Resource):
    selector: LabelSelector
    podMetricsEndpoints: list[PodMetricsEndpoint]  # noqa: N815


class PodMonitor(Resource):
    apiVersion: Literal["monitoring.coreos.com/v1"]  # noqa: N815
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Image(Resource):
    name: str
    newName: str  # noqa: N815
    newTag: str  # noqa: N815


class Kustomization(Resource):
    apiVersion: Literal["kustomize.config.k8s.io/v1beta1"]  # noqa: N815
    kind: Literal["Kustomization"]
    namespace: Name
    resources: list[str]
    images: list[Image]
