"""What compiled loops need to know to write protobuf's wire format.

https://protobuf.dev/programming-guides/encoding/
"""

from google.protobuf.message import Message

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""Wire types."""


def tag(message: type[Message], field: str, wire_type: int) -> int:
    """A field's number and wire type, as they stand before its value. Raises `ValueError` for one beyond a byte."""
    number: int = message.DESCRIPTOR.fields_by_name[field].number
    if number > 15:
        raise ValueError(f"{message.DESCRIPTOR.full_name}.{field}: got the number {number}; allowed: up to 15.")
    return number << 3 | wire_type
