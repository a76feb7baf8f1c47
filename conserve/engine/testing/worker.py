"""A worker without a model, which notices when the scheduler hands it a KV cache that is not the request's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm.v1.outputs import KVConnectorOutput

from conserve.engine.copy_plan import attach_copy_note, read_copies
from conserve.engine.step_plan import StepPlan, StopNote, attach_stop, read_plan
from conserve.engine.testing.connector import Load
from conserve.engine.testing.copies import CopyFails, CountEarly, FakeCopies
from conserve.engine.vllm_compat import ModelRunnerOutput, SchedulerOutput

VOCABULARY = 1_000
LAYERS = 8

ChooseStop = Callable[[StepPlan], int | None]
"""The layer before which a batch that may be stopped is stopped; None lets it come to its end."""


class WrongBatch(AssertionError):
    """A batch that a real worker would compute garbage for."""


def sample_tokens(prompt: Sequence[int], max_tokens: int, stop_token_ids: Sequence[int] = ()) -> list[int]:
    """What `FakeWorker` answers to a prompt, whatever else the batches hold."""
    prefix = 0
    for token in prompt:
        prefix = extend(prefix, token)
    answer: list[int] = []
    while len(answer) < max_tokens:
        answer.append(_next_token(prefix))
        if answer[-1] in stop_token_ids:
            break
        prefix = extend(prefix, answer[-1])
    return answer


@dataclass
class _Sequence:
    tokens: list[int]
    blocks: list[int]


@dataclass(frozen=True)
class _Kept:
    step: int
    layer: int
    rows: dict[str, tuple[int, int]]
    blocks: dict[str, list[int]] = field(default_factory=dict)


class FakeWorker:
    """Executes batches of a scheduler with one KV cache group.

    Its KV cache holds, for each position, a hash of the tokens up to there; the next token is a function of the last of
    them. So its answers depend on the prompt alone, as those of a greedy model do, and it can tell whether each block
    that a request is to attend to has the request's own tokens in it.

    Args:
        block_size: Tokens of a KV block.
        checks_context: False trusts the scheduler: for long contexts, where the check takes its time.
        load_batches: Batches that go by until KV that `FakeConnector` has is loaded.
        choose_stop: Stops batches, as the safepoints of a real worker do.
        copy_fails: Which copies to host memory and back fail.
        count_early: As in `FakeCopies`.
    """

    def __init__(
        self,
        block_size: int,
        *,
        checks_context: bool = True,
        load_batches: int = 3,
        choose_stop: ChooseStop | None = None,
        copy_fails: CopyFails = lambda plan: False,
        count_early: CountEarly = lambda: 1,
    ) -> None:
        self._choose_stop = choose_stop
        self._void_generation = -1
        self._kept: _Kept | None = None
        self._block_size = block_size
        self._load_batches = load_batches
        self._loads: list[tuple[int, Load]] = []
        self._batches = 0
        self._checks_context = checks_context
        self._cache: dict[tuple[int, int], int] = {}
        self._sequences: dict[str, _Sequence] = {}
        self.copies = FakeCopies(self._cache, block_size, copy_fails, count_early)

    def execute(self, batch: SchedulerOutput) -> ModelRunnerOutput:
        """Computes a batch.

        Raises:
            WrongBatch: tokens are not known yet, blocks are missing, or have another request's tokens in them; or a
                stopped pass is continued that was not kept, or with other rows.
        """
        self.copies.begin(read_copies(batch))
        for copy in batch.kv_cache_block_copies or ():
            self.copies.copy_block(copy.src_block_id, copy.dst_block_id)
        for request_id in batch.finished_req_ids:
            self._sequences.pop(request_id, None)
        starts: dict[str, int] = {}
        for new in batch.scheduled_new_reqs:
            # Runner V2 is told all tokens of a resumed request in this way, runner V1 in `all_token_ids` below.
            tokens = new.prefill_token_ids if new.prefill_token_ids is not None else new.prompt_token_ids
            self._sequences[new.req_id] = _Sequence(list(tokens), list(new.block_ids[0]))
            starts[new.req_id] = new.num_computed_tokens
        cached = batch.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            self._update(request_id, index, batch)
            starts[request_id] = cached.num_computed_tokens[index]
        request_ids = list(batch.num_scheduled_tokens)
        index_of = {request_id: index for index, request_id in enumerate(request_ids)}
        if (note := self._stop(batch, starts)) is not None:
            output = ModelRunnerOutput(req_ids=request_ids, req_id_to_index=index_of)
            attach_stop(output, note)
            return output
        output = ModelRunnerOutput(
            req_ids=request_ids,
            req_id_to_index=index_of,
            sampled_token_ids=[
                self._compute(request_id, starts[request_id], batch.num_scheduled_tokens[request_id])
                for request_id in request_ids
            ],
            kv_connector_output=self._load(batch),
        )
        attach_copy_note(output, self.copies.take_note())
        return output

    def _stop(self, batch: SchedulerOutput, starts: dict[str, int]) -> StopNote | None:
        plan = read_plan(batch)
        if plan is None or not batch.num_scheduled_tokens:
            return None
        if plan.generation == self._void_generation:
            return StopNote(plan.step, 0, LAYERS, is_void=True)
        if self.copies.is_missing:
            self._void_generation = plan.generation
            return StopNote(plan.step, 0, LAYERS, failed_blocks=self.copies.take_missing())
        rows = {request_id: (starts[request_id], tokens) for request_id, tokens in batch.num_scheduled_tokens.items()}
        first_layer = self._continue(plan, rows)
        if plan.rule == "never" or self._choose_stop is None:
            return None
        layer = self._choose_stop(plan)
        if layer is None or layer < first_layer or layer == first_layer > 0:
            return None
        self._void_generation = plan.generation
        if plan.keep and layer:
            blocks = {request_id: list(self._sequences[request_id].blocks) for request_id in rows}
            self._kept = _Kept(plan.step, layer, rows, blocks)
        return StopNote(plan.step, layer, LAYERS, kept_bytes=1 if plan.keep and layer else 0)

    def _continue(self, plan: StepPlan, rows: dict[str, tuple[int, int]]) -> int:
        """The first layer to compute."""
        kept = self._kept
        if kept is not None and plan.kept != kept.step:
            self._kept = None
        if not plan.resumes:
            return 0
        if kept is None or plan.resumes != kept.step:
            raise WrongBatch(f"batch {plan.step} is to continue {plan.resumes}, which is not kept")
        for request_id, row in rows.items():
            then = kept.blocks.get(request_id, [])
            if kept.rows.get(request_id) != row or self._sequences[request_id].blocks[: len(then)] != then:
                raise WrongBatch(f"{request_id}: is continued as {row}, was stopped as {kept.rows.get(request_id)}")
        return kept.layer

    def _load(self, batch: SchedulerOutput) -> KVConnectorOutput | None:
        if batch.kv_connector_metadata is None:
            return None
        self._batches += 1
        self._loads += [(self._batches + self._load_batches, load) for load in batch.kv_connector_metadata.new]
        done = [load for due, load in self._loads if due <= self._batches]
        self._loads = [(due, load) for due, load in self._loads if due > self._batches]
        for load in done:
            prefix = 0
            for position, token in enumerate(load.tokens):
                prefix = extend(prefix, token)
                self._cache[load.blocks[position // self._block_size], position % self._block_size] = prefix
        return KVConnectorOutput(finished_recving={load.request_id for load in done})

    def _update(self, request_id: str, index: int, batch: SchedulerOutput) -> None:
        cached = batch.scheduled_cached_reqs
        sequence = self._sequences.get(request_id)
        if sequence is None:
            raise WrongBatch(f"{request_id}: was never new")
        blocks = cached.new_block_ids[index]
        all_tokens = cached.all_token_ids.get(request_id)
        if request_id in cached.resumed_req_ids:
            if blocks is None or all_tokens is None:
                raise WrongBatch(f"{request_id}: resumed without blocks or tokens")
            self._sequences[request_id] = _Sequence(list(all_tokens), list(blocks[0]))
            return
        if all_tokens is not None and list(all_tokens) != sequence.tokens:
            raise WrongBatch(f"{request_id}: comes back with {len(all_tokens)} tokens for {len(sequence.tokens)}")
        if blocks is not None:
            sequence.blocks += blocks[0]

    def _compute(self, request_id: str, start: int, count: int) -> list[int]:
        sequence = self._sequences[request_id]
        end = start + count
        if count <= 0 or end > len(sequence.tokens):
            raise WrongBatch(f"{request_id}: tokens {start} to {end} of {len(sequence.tokens)} known ones")
        if end > len(sequence.blocks) * self._block_size:
            raise WrongBatch(f"{request_id}: {len(sequence.blocks)} blocks for {end} tokens")
        size = self._block_size
        for number, block in enumerate(sequence.blocks[: -(-end // size)]):
            if (number + 1) * size <= start:
                self.copies.check_read(block)
            else:
                self.copies.check_written(block)
        prefix = 0
        if self._checks_context:
            for position in range(start):
                prefix = extend(prefix, sequence.tokens[position])
                if self._cache.get(self._locate(sequence, position)) != prefix:
                    raise WrongBatch(f"{request_id}: KV of token {position} of {start} is not there")
        elif start:
            prefix = self._cache[self._locate(sequence, start - 1)]
        for position in range(start, end):
            prefix = extend(prefix, sequence.tokens[position])
            self._cache[self._locate(sequence, position)] = prefix
        if end < len(sequence.tokens):
            return []
        token = _next_token(prefix)
        sequence.tokens.append(token)
        return [token]

    def _locate(self, sequence: _Sequence, position: int) -> tuple[int, int]:
        return sequence.blocks[position // self._block_size], position % self._block_size


def extend(prefix: int, token: int) -> int:
    """What `FakeWorker` has in its KV cache for a token: a hash of it and all before."""
    return hash((prefix, token))


def _next_token(prefix: int) -> int:
    return prefix % VOCABULARY
