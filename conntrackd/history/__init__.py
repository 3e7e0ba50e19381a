"""What was logged, read back: from files of the stream, from the journal and from Loki."""
