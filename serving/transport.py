"""Bounds of the transport: sizes of messages and metadata, streams a connection, and how long connections live."""

from features.events import MAX_ID_BYTES
from serving.query import MAX_CATEGORIES, MAX_ITEM_IDS

_IDS_OF_LARGEST_REQUEST = 2 * MAX_ITEM_IDS + 2 * MAX_CATEGORIES + 100
"""A Recommend with both lists of items, both of categories and all languages."""
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""What gRPC refuses beyond with RESOURCE_EXHAUSTED, before any of our code: the largest request that is allowed takes
2.9 MB, each id with three bytes around it."""
assert MAX_MESSAGE_BYTES > _IDS_OF_LARGEST_REQUEST * (MAX_ID_BYTES + 3)
MAX_METADATA_BYTES = 8 * 1024
MAX_STREAMS = 256
"""Requests at once over one connection; further ones wait in the client. More than are admitted, so that load is shed
with a hint and does not queue unseen; RFC 9113 advises at least 100."""

SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    # A caller that has vanished is noticed, and one that only keeps the connection open is let be.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Callers come back now and then, to find servers that are new; requests under way are finished.
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
)
