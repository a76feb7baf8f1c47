"""Bodies of online requests: vLLM's, read so that whatever a client sends is either taken or refused by name.

Validators of vLLM 0.32 look into fields before these are checked, and raise a `TypeError` or the like where a field is
of another type than they expect. Pydantic passes that on, and it would be an error of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, get_args

from pydantic import TypeAdapter, ValidationError, WrapValidator

from conserve.jobs.errors import ApiError
from deployments.ray_compat import ChatCompletionRequest, CompletionRequest, EmbeddingRequest

_TRIPS: Final = (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)


def _refuse_trips(kind: Any) -> WrapValidator:
    def validate(value: Any, read: Callable[[Any], Any]) -> Any:
        try:
            return read(value)
        except _TRIPS as error:
            raise _find_fault(kind, value) from error

    return WrapValidator(validate)


def _find_fault(kind: Any, value: Any) -> ApiError:
    """What is wrong with a body that a validator has tripped over."""
    for model in get_args(kind) or (kind,):
        for name in model.model_fields:
            if isinstance(value, dict) and name in value and not _fits(model, name, value[name]):
                message = f"Invalid value for '{name}': it is of another type than it should be."
                return ApiError(400, message, param=name, code="invalid_type")
    return ApiError(400, "The request is not valid: a field is of another type than it should be.", code="invalid_type")


def _fits(model: Any, name: str, value: Any) -> bool:
    try:
        _find_reader(model, name).validate_python(value)
    except (ValidationError, *_TRIPS):
        return False
    return True


@cache
def _find_reader(model: Any, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(model.model_fields[name].annotation)


ChatBody = Annotated[ChatCompletionRequest, _refuse_trips(ChatCompletionRequest)]
CompletionBody = Annotated[CompletionRequest, _refuse_trips(CompletionRequest)]
EmbeddingBody = Annotated[EmbeddingRequest, _refuse_trips(EmbeddingRequest)]

CHAT_BODY: Final[TypeAdapter[Any]] = TypeAdapter(ChatBody)
COMPLETION_BODY: Final[TypeAdapter[Any]] = TypeAdapter(CompletionBody)
