"""The event path in C: receive, event, decide, locate, render, send. Knows no setting."""
