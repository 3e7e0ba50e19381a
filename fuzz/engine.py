"""One target under atheris: python -m fuzz.engine TARGET [options of libFuzzer]."""

import sys

import atheris

# What is imported here is instrumented: the parsers of the libraries too, whose branches are the input's.
with atheris.instrument_imports(include=["conntrackd", "ply", "yaml", "tomllib", "json"]):
    from fuzz.targets import TARGETS

if __name__ == "__main__":
    name, *options = sys.argv[1:]
    # libFuzzer starts itself again to merge, by a shell.
    atheris.Setup([f"{sys.executable} -m fuzz.engine {name}", *options], TARGETS[name])
    atheris.Fuzz()
