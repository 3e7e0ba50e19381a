"""What was logged, read back: from files of the stream and from the journal."""
