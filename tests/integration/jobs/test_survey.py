"""Real servers, looked at."""

from __future__ import annotations

from pathlib import Path

from redis.asyncio import Redis

from conserve.config import Settings
from conserve.jobs import embedded
from conserve.jobs.connection import is_new_enough
from conserve.jobs.keys import SCHEMA_VERSION, Keys
from conserve.jobs.survey import survey_server


async def test_a_server_is_looked_at_and_left_as_it_is(settings: Settings, redis: Redis) -> None:
    found = survey_server(settings)
    assert found is not None
    assert is_new_enough(found.version)
    assert (found.is_cluster, found.has_append_only_file, found.found_schema) == (False, True, SCHEMA_VERSION)
    other = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"namespace": "nobody"})})
    again = survey_server(other)
    assert again is not None
    assert again.found_schema is None
    assert await redis.exists(Keys("nobody").schema) == 0


def test_the_embedded_server_is_not_started_for_it(tmp_path: Path) -> None:
    settings = Settings.model_validate({"state_dir": tmp_path / "state"})
    assert survey_server(settings) is None
    assert not (tmp_path / "state").exists()
    try:
        embedded.ensure_running(tmp_path / "state")
        found = survey_server(settings)
        assert found is not None
        assert found.has_append_only_file
    finally:
        embedded.stop(tmp_path / "state")
