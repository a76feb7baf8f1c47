"""All settings of a ConServe application, in one place.

`Settings` is the `args` block of the Serve application in `serve_config.yaml`. Every value can be overridden by an
environment variable named after its path: `jobs.redis_url` by `CONSERVE_JOBS__REDIS_URL`. Unknown keys and wrong
values are refused with the setting's name, the value given and what is allowed (`SettingsError`).
"""

from __future__ import annotations

from conserve.config.autoscaling import AutoscalingSettings, SpotSettings
from conserve.config.loading import ENV_NOT_SETTINGS, ENV_PREFIX, ENV_TEST_PREFIX, SettingsError, load_settings
from conserve.config.offline_sections import HarvestSettings, JobsSettings
from conserve.config.online_sections import OverloadSettings, RequestSettings
from conserve.config.redis_url import EMBEDDED_REDIS
from conserve.config.sections import (
    DEFAULT_CLASS,
    EngineSettings,
    HttpSettings,
    RequestClass,
    RoutingSettings,
    Settings,
    SloSettings,
    TracingSettings,
)
from conserve.config.tenants import DEFAULT_TENANT, NAME_PATTERN, FlexSettings, TenantSettings, digest_key

__all__ = [
    "DEFAULT_CLASS",
    "DEFAULT_TENANT",
    "EMBEDDED_REDIS",
    "ENV_NOT_SETTINGS",
    "ENV_PREFIX",
    "ENV_TEST_PREFIX",
    "NAME_PATTERN",
    "AutoscalingSettings",
    "EngineSettings",
    "FlexSettings",
    "HarvestSettings",
    "HttpSettings",
    "JobsSettings",
    "OverloadSettings",
    "RequestClass",
    "RequestSettings",
    "RoutingSettings",
    "Settings",
    "SettingsError",
    "SloSettings",
    "SpotSettings",
    "TenantSettings",
    "TracingSettings",
    "digest_key",
    "load_settings",
]
