"""What pyproject.toml cannot say to setuptools 66 of Debian 12: the core and files outside of the package."""

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

# Below the prefix. Distributions' packages take them from here, too.
FILES = {
    "lib/systemd/system": ["systemd/conntrackd.service", "systemd/conntrackd-metrics.socket"],
    "lib/sysusers.d": ["systemd/conntrackd.conf"],
    "share/conntrackd": ["contrib/conntrackd.yaml", "contrib/conntrackd.logrotate"],
    "share/dbus-1/system.d": ["dbus/org.conntrackd1.conf"],
    "share/polkit-1/actions": ["dbus/org.conntrackd1.policy"],
    **{f"share/man/man{section}": sorted(glob(f"man/*.{section}")) for section in range(1, 9)},
    "share/bash-completion/completions": sorted(glob("contrib/completions/bash/*")),
    "share/fish/vendor_completions.d": sorted(glob("contrib/completions/fish/*")),
    "share/zsh/site-functions": sorted(glob("contrib/completions/zsh/*")),
}

# PEP 639: a table, which is what setuptools 66 takes in pyproject.toml, is deprecated by those from 77 on.
EXPRESSION = int(setuptools.__version__.partition(".")[0]) >= 77

setuptools.setup(
    data_files=[(folder, files) for folder, files in FILES.items() if files],
    ext_modules=[CORE],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    **{"license_expression" if EXPRESSION else "license": "MIT"},
)
