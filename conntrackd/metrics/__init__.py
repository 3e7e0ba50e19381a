"""What the daemon counts, for Prometheus: the table of metrics, their text, and the two ways to it."""
