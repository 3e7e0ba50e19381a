"""One target under atheris: python -m fuzz.engine TARGET [options of libFuzzer]."""

import sys

import atheris

# What is imported here is instrumented: the parsers of the libraries too, whose branches are the input's.
with atheris.instrument_imports(include=["conntrackd", "ply", "yaml", "tomllib", "json"]):
    from fuzz.targets import TARGETS

if __name__ == "__main__":
    target = TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], target)
    atheris.Fuzz()
