"""JSON lines, as the stream sink and the tails write them."""

from typing import Final

from conntrackd.render.template import JSON_SYNTAX, Template

TEMPLATE: Final = Template(
    '{"time":"$time","level":"$level","msg":"$message"$fields}\n',
    JSON_SYNTAX,
    {"level": "INFO"},
    {"level": "WARN"},
)
