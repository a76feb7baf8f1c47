"""A chat, a stream, a batch and an error over gRPC: `python docs/examples/grpc_client.py 127.0.0.1:9000`."""

from __future__ import annotations

import os
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from deployments.protos import conserve_pb2 as pb
from deployments.protos.conserve_pb2_grpc import BatchServiceStub, GenerationServiceStub

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
# Needed where the settings have `tenants`; without them it is not looked at.
metadata = [("authorization", f"Bearer {os.environ.get('CONSERVE_API_KEY', 'none')}")]
question = pb.Chat(messages=[pb.ChatMessage(role="user", content="What is the capital of France?")])
sampling = pb.Sampling(max_tokens=16, temperature=0)

with grpc.insecure_channel(address) as channel:
    generation, batches = GenerationServiceStub(channel), BatchServiceStub(channel)

    # Beyond the deadline the engine stops working on it.
    whole = generation.Generate(pb.GenerateRequest(chat=question, sampling=sampling), timeout=60, metadata=metadata)
    print("answer:", whole.choices[0].text)

    print("stream: ", end="")
    request = pb.GenerateStreamRequest(chat=question, sampling=sampling)
    for piece in generation.GenerateStream(request, timeout=60, metadata=metadata):
        for choice in piece.choices:
            print(choice.text, end="", flush=True)
    print()

    requests = [
        pb.InlineRequest(custom_id=name, request=pb.GenerateRequest(prompt=f"{name} is", sampling=sampling))
        for name in ("Paris", "Rome", "Oslo")
    ]
    created = batches.CreateBatch(
        pb.CreateBatchRequest(requests=pb.InlineRequests(requests=requests), completion_window="24h"),
        timeout=60,
        metadata=metadata,
    )
    results = pb.StreamResultsRequest(batch_id=created.batch.id, follow=True)
    for response in batches.StreamResults(results, timeout=600, metadata=metadata):
        for result in response.results:
            print("result:", result.custom_id, result.status_code)
    batch = batches.GetBatch(pb.GetBatchRequest(batch_id=created.batch.id), timeout=60, metadata=metadata).batch
    print("batch:", pb.BatchStatus.Name(batch.status), batch.request_counts.completed, "done")

    try:
        wrong = pb.GenerateRequest(chat=question, sampling=pb.Sampling(temperature=-1))
        generation.Generate(wrong, timeout=60, metadata=metadata)
    except grpc.RpcError as error:
        print("refused:", error.code().name)
        for detail in rpc_status.from_call(error).details:
            if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                for violation in error_details_pb2.BadRequest.FromString(detail.value).field_violations:
                    print("field:", violation.field)
