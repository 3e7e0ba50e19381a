"""What an event costs: conntrackd and others against the cheapest listener there can be (`make bench`)."""
