"""The D-Bus interface org.conntrackd1: service for the daemon, client for conntrackctl."""
