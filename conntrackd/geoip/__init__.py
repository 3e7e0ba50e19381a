"""Address -> Location."""
