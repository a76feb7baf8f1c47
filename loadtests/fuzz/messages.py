"""Hypothesis strategies for messages of protocol buffers, made from their descriptors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

MOST_ITEMS, MANY_ITEMS = 3, 20
DEEPEST: Final = 4
LONG_TEXT: Final = "é" * 20_000

_32_BITS: Final = (-(2**31), 2**31 - 1)
_64_BITS: Final = (-(2**63), 2**63 - 1)
_NUMBERS: Final[dict[int, st.SearchStrategy[Any]]] = {
    FieldDescriptor.CPPTYPE_INT32: st.sampled_from([0, 1, -1, *_32_BITS]) | st.integers(*_32_BITS),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from([0, 1, -1, 3_600, 86_400, *_64_BITS]) | st.integers(*_64_BITS),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.sampled_from([0.0, 0.5, 1.0]) | st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


class Messages:
    """Makes strategies.

    Args:
        words: Texts that mean something, by the name of a field; drawn as often as any others.
    """

    def __init__(self, words: Callable[[str], Sequence[str]]) -> None:
        self._words = words

    def strategy(self, descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
        """Messages of a type; each field is there or not, and one of a `oneof`, whichever comes last."""
        fields = [field for field in descriptor.fields if depth < DEEPEST or field.message_type is None]
        values = {field.name: st.none() | self._value(field, depth) for field in fields}
        return st.fixed_dictionaries(values).map(lambda drawn: _build(descriptor, drawn))

    def _value(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        if (entry := field.message_type) is not None and entry.GetOptions().map_entry:
            key, value = (entry.fields_by_name[name] for name in ("key", "value"))
            keys, values = self._single(key, depth), self._single(value, depth)
            return st.dictionaries(keys, values, max_size=MANY_ITEMS)
        single = self._single(field, depth)
        return st.lists(single, max_size=MOST_ITEMS) if field.is_repeated else single

    def _single(self, field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
        if field.message_type is not None:
            return self.strategy(field.message_type, depth + 1)
        if field.enum_type is not None:
            # Numbers that have no name are kept, too.
            return st.sampled_from([one.number for one in field.enum_type.values]) | st.integers(*_32_BITS)
        if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
            return _NUMBERS[field.cpp_type]
        if field.type == FieldDescriptor.TYPE_BYTES:
            return st.binary(max_size=100)
        texts = st.sampled_from(self._words(field.name))
        # Half surrogate pairs cannot stand in a message.
        return texts | st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.just(LONG_TEXT)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _build(descriptor: Descriptor, values: dict[str, Any]) -> Message:
    message: Message = GetMessageClass(descriptor)()
    for name, value in values.items():
        if value is None:
            continue
        field = descriptor.fields_by_name[name]
        target = getattr(message, name) if field.is_repeated or field.message_type is not None else None
        if target is None:
            setattr(message, name, value)
        elif _is_map(field):
            target.update(value)
        elif field.is_repeated:
            target.extend(value)
        else:
            target.SetInParent()
            target.CopyFrom(value)
    return message
