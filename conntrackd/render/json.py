"""JSON lines, as the stream sink and the tails write them."""

from typing import Final

from conntrackd.render.fields import HEADS, REPORTS
from conntrackd.render.schema import NATIVE, Constants, Schema
from conntrackd.render.template import JSON_SYNTAX, Syntax, Template

WORDS: Final = {"time": "$time", "level": "$level", "msg": "$message"}
# What a schema has in each record; what stands there belongs to the template.
CONSTANTS: Final = "$constants"


def write_object(names: frozenset[str] | None = None, schema: Schema = NATIVE) -> str:
    """The text of one object, with those of `time`, `level` and `msg` that are among the names; None: all."""
    heads = [f'"{schema.rename(name)}":"{WORDS[name]}"' for name in HEADS if names is None or name in names]
    heads += [] if schema.is_native else [CONSTANTS]
    return f"{{{','.join(heads)}$fields}}"


def write_constants(syntax: Syntax, constants: Constants) -> str:
    """What `$constants` is, without a comma before it."""
    return "".join(
        syntax.text(name, value)
        if isinstance(value, str)
        else syntax.number(name, syntax.write_list(",".join(value)))
        for name, value in constants.items()
    ).removeprefix(",")


def _make_template(names: frozenset[str] | None, schema: Schema = NATIVE, host: str = "") -> Template:
    constants = [schema.list_constants(host, report=report) for report in ("", *REPORTS)]
    event, loss, held = (write_constants(JSON_SYNTAX, values) for values in constants)
    return Template(
        f"{write_object(names, schema)}\n",
        JSON_SYNTAX,
        {"level": "INFO", "constants": event},
        {"level": "WARN", "constants": loss},
        {"constants": held},
        fields=names,
        loss_text=f"{write_object(None, schema)}\n",
        is_bare=schema.is_native and names is not None and not names & set(HEADS),
        schema=schema,
    )


TEMPLATE: Final = _make_template(None)


def make_template(names: frozenset[str] | None, schema: Schema = NATIVE, host: str = "") -> Template:
    """Lines with these fields; None for all. A schema other than our own has the name of the host in each."""
    return TEMPLATE if names is None and schema.is_native else _make_template(names, schema, host)
