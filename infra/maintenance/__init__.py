"""What only the machine knows how to clean: checkpoints of the stream job, logs, and topics after an erasure."""
