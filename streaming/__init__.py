"""The synthetic world, the producer, the Flink job and the online writer."""
