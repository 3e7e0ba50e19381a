"""How a setting comes from file, variable and command line into `Config`, with where it was said."""
