"""The log on NATS JetStream: the stream and its settings, appending, reading, the API beneath."""
