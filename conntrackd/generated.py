"""The only place that runs Python which was written at run time: a layout, a filter, a set of sinks' forms.

No text of a user or from the network is in it but as a constant, quoted by repr().
"""

from collections.abc import Callable, Mapping
from typing import Any


def define(source: str, name: str, names: Mapping[str, object]) -> Callable[..., Any]:
    """The function of that name that the source defines; `names` are all that it knows."""
    namespace = dict(names)
    exec(compile(source, f"<generated {name}>", "exec"), namespace)  # noqa: S102  # see above
    function: Callable[..., Any] = namespace[name]  # type: ignore[assignment]
    return function
