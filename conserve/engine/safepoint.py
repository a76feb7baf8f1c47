"""Safepoints: before each layer of the model, a pass of offline work can be stopped for an online arrival.

They stand in the decoder layers themselves and not in the hooks that a KV connector has there: those lie within a
layer, behind its first norm, where a pass can be stopped but not continued; and the connector remains the user's.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import nn

from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.resume import KeptPass, Row
from conserve.engine.step_plan import StepPlan, StopNote
from conserve.policy.pass_stop import LAYERS_TO_STOP, PassProgress, is_time_up, must_stop

MOST_KEPT_BYTES: Final = 256 * 2**20
"""A pass with larger tensors is not kept when it is stopped."""
VERDICT_TIMEOUT_S: Final = 60.0
MOST_LAYERS: Final = 8_192
_LLAMA_LIKE: Final = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
ListRows = Callable[[], Mapping[str, Row]]
_LLAMA_INPUTS: Final = ["positions", "hidden_states", "residual"]


class PassStopped(BaseException):
    """The pass was stopped. No `Exception`, so that nothing between a layer and the worker takes it for a failure."""

    def __init__(self, note: StopNote) -> None:
        super().__init__(f"stopped before layer {note.layer}")
        self.note = note


class PassGate:
    """Stands before the layers of a model. Without a plan it lets everything through.

    Args:
        layers: The decoder layers, in order.
        rank, ranks: Of the tensor-parallel workers, which all stop before the same layer.
    """

    def __init__(self, layers: Sequence[nn.Module], rank: int = 0, ranks: int = 1) -> None:
        self.layers = len(layers)
        self.can_resume = all(is_llama_like(layer) for layer in layers)
        self._rank = rank
        self._ranks = ranks
        self._board: ArrivalBoard | None = None
        self._plan: StepPlan | None = None
        self._list_rows: ListRows = dict
        self._kept: KeptPass | None = None
        self._inputs: tuple[torch.Tensor, torch.Tensor] | None = None
        self._first_layer = 0
        self._began_s = 0.0
        self._announced = -1
        self._due_s = float("inf")
        self._events: list[torch.cuda.Event] = []
        self._is_on_gpu = torch.cuda.is_available()
        for index, layer in enumerate(layers):
            layer.forward = self._wrap(index, layer.forward)

    # The worker.

    def watch(self, board: ArrivalBoard) -> None:
        """Passes are stopped for what is announced on this board from now on."""
        self._board = board

    def open(self, plan: StepPlan, list_rows: ListRows, tokens: int) -> None:
        """A pass begins.

        Args:
            plan: Of its batch.
            list_rows: Gives the rows of its batch, in their order, by request id.
            tokens: Of its batch, padding included.
        """
        self._plan = plan
        self._list_rows = list_rows
        self._first_layer = 0
        self._inputs = None
        if self._kept is not None and plan.resumes == self._kept.step:
            self._inputs = self._kept.select(list_rows(), tokens)
            self._first_layer = self._kept.layer if self._inputs is not None else 0
        if self._kept is not None and plan.kept != self._kept.step:
            self._kept = None
        self._began_s = time.monotonic()
        self._announced = -1
        self._due_s = float("inf")
        self._events.clear()

    def close(self) -> None:
        """The pass has ended, in whatever way."""
        self._plan = None
        self._list_rows = dict
        self._inputs = None
        self._events.clear()

    def drop(self) -> None:
        """Lets go of what is kept."""
        self._kept = None

    @property
    def first_layer(self) -> int:
        """The first layer that the pass computes: 0, unless it continues another one."""
        return self._first_layer

    # The layers.

    def _wrap(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        if not self.can_resume:

            def check_and_go_on(*args: Any, **kwargs: Any) -> Any:
                if not torch.compiler.is_compiling() and self._plan is not None:
                    self._check(self._plan, index, None, None)
                return forward(*args, **kwargs)

            return check_and_go_on

        def go_on(
            positions: torch.Tensor,
            hidden_states: torch.Tensor,
            residual: torch.Tensor | None,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            plan = self._plan
            if torch.compiler.is_compiling() or plan is None:
                return forward(positions, hidden_states, residual, *args, **kwargs)
            if index < self._first_layer:
                return hidden_states, hidden_states
            if self._inputs is not None:
                hidden_states, residual = self._inputs
                self._inputs = None
            self._check(plan, index, hidden_states, residual)
            return forward(positions, hidden_states, residual, *args, **kwargs)

        return go_on

    def _check(
        self, plan: StepPlan, layer: int, hidden_states: torch.Tensor | None, residual: torch.Tensor | None
    ) -> None:
        """Stops the pass here, if it has to stop."""
        if layer % plan.interval_layers or not plan.is_stoppable:
            return
        # However often it is stopped, each try computes a layer.
        if layer == self._first_layer > 0:
            return
        if self._ranks > 1:
            stops = self._agree(plan, layer)
        else:
            self._wait_for_device()
            stops = self._decide(plan, layer)
        if stops:
            raise PassStopped(self._stop(plan, layer, hidden_states, residual))

    def _decide(self, plan: StepPlan, layer: int) -> bool:
        if layer == plan.stop_at_layer:
            return True
        if plan.until_s < math.inf and is_time_up(self._measure(plan, layer), plan.until_s):
            return True
        board = self._board
        if board is None or plan.rule == "never":
            return False
        if board.announced != self._announced:
            self._announced = board.announced
            self._look(board)
        if math.isnan(self._due_s):
            return False
        progress = self._measure(plan, layer)
        if not must_stop(plan.rule, progress, self._due_s, plan.first_token_ms):
            return False
        # It may have gone meanwhile.
        self._look(board)
        return not math.isnan(self._due_s) and must_stop(plan.rule, progress, self._due_s, plan.first_token_ms)

    def _measure(self, plan: StepPlan, layer: int) -> PassProgress:
        return PassProgress(
            self._began_s, time.monotonic(), self._first_layer, layer, self.layers, plan.predicted_end_s
        )

    def _look(self, board: ArrivalBoard) -> None:
        pending = board.pending()
        self._due_s = pending.due_s if pending is not None else math.nan

    def _agree(self, plan: StepPlan, layer: int) -> bool:
        """The first rank decides, the others wait for what it has decided for this layer or a later one."""
        board = self._board
        if board is None:
            return False
        place = float(plan.step * MOST_LAYERS + layer)
        if self._rank == 0:
            self._wait_for_device()
            stops = self._decide(plan, layer)
            board.publish_verdict(place, stops=stops)
            return stops
        deadline_s = time.monotonic() + VERDICT_TIMEOUT_S
        while (verdict := board.read_verdict(place)) is None:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the first rank has not come to layer {layer} within {VERDICT_TIMEOUT_S:g} s")
            time.sleep(0)
        return verdict

    def _wait_for_device(self) -> None:
        """Keeps the launches of a stoppable pass within two layers of what the GPU has computed.

        A stop only keeps further layers from being launched: with all of them launched ahead it would come too late.
        """
        if not self._is_on_gpu:
            return
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > LAYERS_TO_STOP:
            self._events.pop(0).synchronize()

    def _stop(
        self, plan: StepPlan, layer: int, hidden_states: torch.Tensor | None, residual: torch.Tensor | None
    ) -> StopNote:
        kept: KeptPass | None = None
        if plan.keep and layer > 0 and hidden_states is not None and residual is not None:
            kept = KeptPass(plan.step, layer, hidden_states, residual, self._list_rows())
            if kept.size_bytes > MOST_KEPT_BYTES:
                kept = None
        self._kept = kept
        pending = self._board.pending() if self._board is not None else None
        return StopNote(
            step=plan.step,
            layer=layer,
            layers=self.layers,
            kept_bytes=kept.size_bytes if kept is not None else 0,
            announced_s=pending.announced_s if pending is not None else 0.0,
            stopped_s=time.monotonic(),
        )


def is_llama_like(layer: nn.Module) -> bool:
    """Whether a layer takes and gives nothing but hidden states and residual, as those of the Llama family."""
    names = {kind.__name__ for kind in type(layer).__mro__}
    return not names.isdisjoint(_LLAMA_LIKE) and [*inspect.signature(layer.forward).parameters][:3] == _LLAMA_INPUTS


def find_layers(model: nn.Module, count: int) -> list[nn.Module]:
    """The decoder layers of a model that has `count` of them; empty if they are not found."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return [*module]
    return []
