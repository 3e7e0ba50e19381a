"""What pyproject.toml cannot say to the setuptools of Debian 12: the core."""

from glob import glob

import setuptools

CORE = setuptools.Extension(
    "conntrackd.core._core",
    sorted(glob("conntrackd/core/*.c")),
    depends=sorted(glob("conntrackd/core/*.h")),
    # One file for all Python 3 from 3.11 on.
    define_macros=[("Py_LIMITED_API", "0x030B0000"), ("_GNU_SOURCE", "1")],
    py_limited_api=True,
    extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden"],
)

setuptools.setup(ext_modules=[CORE], options={"bdist_wheel": {"py_limited_api": "cp311"}})
