"""A model that is a folder already: nothing has to be downloaded before the engine starts."""

from __future__ import annotations

from deployments.ray_compat import CallbackBase


class SkipDownload(CallbackBase):
    """Spares a replica the download step of Ray Serve LLM: a task in a fresh process, which takes its 15 s to import.

    A callback of `LLMConfig.callback_config`, made by Ray in each replica.
    """

    async def on_before_node_init(self) -> None:
        """Runs before the engine is configured."""
        self.ctx.run_init_node = False
