"""The gate before the layers of a model: where it stops a pass, and how one goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conserve.engine import safepoint
from conserve.engine.arrival_board import ArrivalBoard
from conserve.engine.resume import Row
from conserve.engine.safepoint import PassGate, PassStopped, find_layers, is_llama_like
from conserve.engine.step_plan import StepPlan, StopNote

LAYERS = 6
WIDTH = 4


class LlamaDecoderLayer(nn.Module):
    """With the inputs of the real one, writing into them as the real one does."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, WIDTH + 1) * 0.1 + index)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            residual = hidden_states.clone()
        else:
            residual += hidden_states
        return torch.tanh(residual * self.weight), residual


class OtherDecoderLayer(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + 1


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LlamaDecoderLayer(index) for index in range(LAYERS))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden_states, residual = inputs.clone(), None
        for layer in self.layers:
            hidden_states, residual = layer(torch.arange(len(inputs)), hidden_states, residual)
        return hidden_states + residual


Batch = Mapping[str, tuple[int, int]]
"""Start and tokens of each request."""


def rows_of(batch: Batch, blocks: Mapping[str, list[int]] | None = None) -> dict[str, Row]:
    rows, offset = {}, 0
    for name, (start, tokens) in batch.items():
        rows[name] = Row(start, tokens, offset, (tuple((blocks or {}).get(name, [1, 2])),))
        offset += tokens
    return rows


def inputs_of(batch: Batch) -> torch.Tensor:
    """Tokens that differ from each other, and are the same in each batch."""
    values = [
        [float(ord(name[0]) + 0.1 * (start + place) + 0.01 * column) for column in range(WIDTH)]
        for name, (start, tokens) in batch.items()
        for place in range(tokens)
    ]
    return torch.tensor(values) / 100


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def gate(model: Model) -> PassGate:
    return PassGate(find_layers(model, LAYERS))


@pytest.fixture
def board(gate: PassGate) -> Iterator[ArrivalBoard]:
    board = ArrivalBoard.create()
    gate.watch(board)
    yield board
    board.remove()


def run(
    gate: PassGate, model: Model, plan: StepPlan, batch: Batch, blocks: Mapping[str, list[int]] | None = None
) -> torch.Tensor | StopNote:
    gate.open(plan, partial(rows_of, batch, blocks), sum(tokens for _, tokens in batch.values()))
    try:
        return model(inputs_of(batch))
    except PassStopped as stop:
        return stop.note
    finally:
        gate.close()


def announce_after(layer: nn.Module, board: ArrivalBoard) -> None:
    """Has a request announced when the layer has been computed."""
    forward = layer.forward

    def announce(*args: torch.Tensor) -> object:
        outputs = forward(*args)
        board.announce(time.monotonic(), due_s=0.0)
        return outputs

    layer.forward = announce


def make_plan(step: int = 1, **fields: object) -> StepPlan:
    return StepPlan(**{"step": step, "generation": 0, "rule": "never", "keep": True, **fields})  # type: ignore[arg-type]


BATCH: Batch = {"a": (0, 3), "b": (7, 1), "c": (2, 2)}


@torch.inference_mode()
def test_a_model_computes_the_same_behind_a_gate(model: Model, gate: PassGate) -> None:
    expected = Model()
    expected.load_state_dict(model.state_dict())
    outputs = run(gate, model, make_plan(), BATCH)
    assert isinstance(outputs, torch.Tensor)
    torch.testing.assert_close(outputs, expected(inputs_of(BATCH)), rtol=0, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_pass_goes_on_where_it_was_stopped(model: Model, gate: PassGate, layer: int) -> None:
    expected = model(inputs_of(BATCH))
    note = run(gate, model, make_plan(stop_at_layer=layer), BATCH)
    assert isinstance(note, StopNote)
    assert (note.layer, note.layers, note.kept_bytes > 0) == (layer, LAYERS, layer > 0)
    outputs = run(gate, model, make_plan(2, resumes=1), BATCH)
    assert isinstance(outputs, torch.Tensor)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@torch.inference_mode()
def test_rows_come_back_in_another_order_and_without_some(model: Model, gate: PassGate) -> None:
    run(gate, model, make_plan(stop_at_layer=3), BATCH)
    later: Batch = {"c": (2, 2), "a": (0, 3)}
    expected = model(inputs_of(later))
    outputs = run(gate, model, make_plan(2, resumes=1), later)
    assert isinstance(outputs, torch.Tensor)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    # This test can fail: rows of others give other outputs.
    run(gate, model, make_plan(3, stop_at_layer=3), BATCH)
    wrong = run(gate, model, make_plan(4, resumes=3), {"a": (0, 3), "c": (2, 2)})
    assert isinstance(wrong, torch.Tensor)
    assert not torch.equal(wrong, expected)


@torch.inference_mode()
def test_a_continued_pass_is_stopped_again(model: Model, gate: PassGate) -> None:
    expected = model(inputs_of(BATCH))
    run(gate, model, make_plan(stop_at_layer=2), BATCH)
    for step, layer in ((2, 3), (3, 5)):
        note = run(gate, model, make_plan(step, resumes=step - 1, stop_at_layer=layer), BATCH)
        assert isinstance(note, StopNote)
        assert note.layer == layer
    outputs = run(gate, model, make_plan(4, resumes=3), BATCH)
    assert isinstance(outputs, torch.Tensor)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@torch.inference_mode()
def test_each_try_computes_a_layer_however_many_arrive(model: Model, gate: PassGate, board: ArrivalBoard) -> None:
    board.announce(time.monotonic(), due_s=0.0)
    step, layers = 1, []
    plan = make_plan(rule="always", keep=True)
    while isinstance(note := run(gate, model, plan, BATCH), StopNote):
        layers.append(note.layer)
        step += 1
        plan = make_plan(step, rule="always", keep=True, resumes=step - 1 if note.kept_bytes else 0)
        if note.layer == 0:
            plan = make_plan(step, rule="never", stop_at_layer=1)
    assert layers == [0, 1, 2, 3, 4, 5]


@torch.inference_mode()
@pytest.mark.parametrize(
    "changed",
    [
        {"batch": {"a": (0, 3), "b": (7, 1), "c": (2, 1)}},
        {"batch": {"a": (1, 3), "b": (7, 1), "c": (2, 2)}},
        {"batch": {**BATCH, "d": (0, 1)}},
        {"blocks": {"b": [1, 3]}},
    ],
    ids=["fewer tokens", "another start", "one more", "other blocks"],
)
def test_what_has_changed_is_computed_in_full(model: Model, gate: PassGate, changed: dict[str, Batch]) -> None:
    run(gate, model, make_plan(stop_at_layer=4), BATCH)
    batch, blocks = changed.get("batch", BATCH), changed.get("blocks")
    expected = model(inputs_of(batch))
    outputs = run(gate, model, make_plan(2, resumes=1), batch, blocks)  # type: ignore[arg-type]
    assert gate.first_layer == 0
    assert isinstance(outputs, torch.Tensor)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


@torch.inference_mode()
def test_blocks_that_were_added_since_do_not_matter(model: Model, gate: PassGate) -> None:
    run(gate, model, make_plan(stop_at_layer=4), BATCH)
    run(gate, model, make_plan(2, resumes=1), BATCH, {"b": [1, 2, 3]})
    assert gate.first_layer == 4


@torch.inference_mode()
def test_what_is_kept_survives_batches_in_between_unless_it_is_let_go(model: Model, gate: PassGate) -> None:
    run(gate, model, make_plan(stop_at_layer=2), BATCH)
    run(gate, model, make_plan(2, kept=1), {"x": (0, 5)})
    run(gate, model, make_plan(3, resumes=1), BATCH)
    assert gate.first_layer == 2
    run(gate, model, make_plan(4, stop_at_layer=2), BATCH)
    run(gate, model, make_plan(5), {"x": (0, 5)})
    run(gate, model, make_plan(6, resumes=4), BATCH)
    assert gate.first_layer == 0


@torch.inference_mode()
def test_a_pass_is_stopped_for_those_whose_objective_it_would_break(
    model: Model, gate: PassGate, board: ArrivalBoard
) -> None:
    now_s = time.monotonic()
    plan = make_plan(rule="slo", predicted_end_s=now_s + 2.0, first_token_ms=500)
    board.announce(now_s, due_s=now_s + 100)
    assert isinstance(run(gate, model, plan, BATCH), torch.Tensor)
    urgent = board.announce(now_s, due_s=now_s + 1)
    note = run(gate, model, plan, BATCH)
    assert isinstance(note, StopNote)
    assert (note.layer, note.announced_s) == (0, now_s)
    board.retire(urgent)
    assert isinstance(run(gate, model, plan, BATCH), torch.Tensor)


@torch.inference_mode()
def test_an_announcement_in_the_middle_of_a_pass_is_seen(model: Model, gate: PassGate, board: ArrivalBoard) -> None:
    announce_after(model.layers[2], board)
    note = run(gate, model, make_plan(rule="slo", predicted_end_s=time.monotonic()), BATCH)
    assert isinstance(note, StopNote)
    assert note.layer == 3


@torch.inference_mode()
def test_safepoints_lie_as_far_apart_as_wanted(model: Model, gate: PassGate, board: ArrivalBoard) -> None:
    plan = make_plan(rule="always", interval_layers=4, predicted_end_s=0.0)
    announce_after(model.layers[1], board)
    note = run(gate, model, plan, BATCH)
    assert isinstance(note, StopNote)
    assert note.layer == 4


@torch.inference_mode()
def test_a_slice_gives_way_in_time(model: Model, gate: PassGate, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(safepoint, "time", SimpleNamespace(monotonic=lambda: now_s))
    layer = model.layers[2]
    forward = layer.forward

    def take_time(*args: torch.Tensor) -> object:
        nonlocal now_s
        outputs = forward(*args)
        now_s += 0.3
        return outputs

    layer.forward = take_time
    expected = model(inputs_of(BATCH))
    note = run(gate, model, make_plan(until_s=now_s + 0.2), BATCH)
    assert isinstance(note, StopNote)
    assert (note.layer, note.announced_s) == (3, 0)
    assert isinstance(run(gate, model, make_plan(until_s=now_s + 60), BATCH), torch.Tensor)
    run(gate, model, make_plan(3, until_s=now_s + 0.2), BATCH)
    outputs = run(gate, model, make_plan(4, resumes=3, until_s=now_s + 60), BATCH)
    assert isinstance(outputs, torch.Tensor)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)


def test_layers_of_other_models_can_be_stopped_but_not_continued() -> None:
    layers = nn.ModuleList(OtherDecoderLayer() for _ in range(3))
    gate = PassGate(list(layers))
    assert not gate.can_resume
    gate.open(make_plan(stop_at_layer=1), dict, 1)
    hidden_states = layers[0](torch.zeros(1))
    with pytest.raises(PassStopped) as stopped:
        layers[1](hidden_states)
    assert stopped.value.note.kept_bytes == 0
    assert is_llama_like(LlamaDecoderLayer(0))


def test_the_layers_of_a_model_are_found_by_their_number(model: Model) -> None:
    assert find_layers(model, LAYERS) == [*model.layers]
    assert find_layers(model, LAYERS + 1) == []


def test_all_ranks_stop_before_the_same_layer() -> None:
    models = [Model(), Model()]
    gates = [PassGate(find_layers(model, LAYERS), rank, ranks=2) for rank, model in enumerate(models)]
    board = ArrivalBoard.create()
    notes: dict[tuple[int, int], StopNote | torch.Tensor] = {}
    barriers = [threading.Barrier(2) for _ in range(LAYERS)]

    def work(rank: int) -> None:
        with torch.inference_mode():
            for index, layer in enumerate(models[rank].layers):
                forward = layer.forward

                def meet(*args: torch.Tensor, index: int = index, forward: object = forward) -> object:
                    barriers[index].wait(60)  # as the collective operations of a real layer
                    return forward(*args)  # type: ignore[operator]

                layer.forward = meet
            for step in range(1, 40):
                plan = make_plan(step, rule="always")
                notes[step, rank] = run(gates[rank], models[rank], plan, BATCH)
                ends.wait(60)
                if rank == 0:
                    board.settle_overdue(time.monotonic() + 1)
                ends.wait(60)

    ends = threading.Barrier(2)
    for gate in gates:
        gate.watch(ArrivalBoard(board.path))
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        board.announce(time.monotonic(), due_s=0.0)
        time.sleep(0.0007)
    board.remove()
    assert len(notes) == 78
    for step in range(1, 40):
        layers = {note.layer if isinstance(note := notes[step, rank], StopNote) else -1 for rank in range(2)}
        assert len(layers) == 1
