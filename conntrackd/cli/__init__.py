"""The two programs people type: conntrackd and conntrackctl."""
