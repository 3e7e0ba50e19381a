"""Text -> AST. The only file that imports ply; the docstrings of its functions are the grammar.

A comma continues a list where a value follows it (`port 22,80`), and means `or` where a condition follows
(`port 22, type NEW`). After `nat SNAT,` the word ANY is taken for a value.
"""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

from ply import lex, yacc

from conntrackd.errors import ConntrackdError, ManyErrors, RuleError
from conntrackd.filter import cel, cost
from conntrackd.filter.ast import Anything, Expression, Rule, conjoin, disjoin, negate
from conntrackd.filter.build import EITHER, Builder, Side, Word
from conntrackd.filter.diagnostics import Mistake, RuleText, suggest
from conntrackd.filter.fields import FAMILIES, STATES, STATUSES, TYPES
from conntrackd.filter.limit import BOTH, BOTH_HINT, Limit
from conntrackd.filter.sets import NO_SETS, Sets
from conntrackd.flow import Protocol
from conntrackd.render.fields import translate
from conntrackd.text import quote

# Each bounds the memory and time that somebody else's text can take (rules also come over D-Bus).
MAX_RULES: Final = 1000
MAX_LENGTH: Final = 4096
MAX_NESTING: Final = 64
MAX_MISTAKES: Final = 100  # that are reported; 1,000 rules of nothing else took a minute and 2.5 GB

LOG: Final = ("LOG", "ALLOW")
# Keywords behind a condition only. Anywhere else they are values: there may be a city of that name.
SAMPLE: Final = "SAMPLE"
LIMIT: Final = "LIMIT"
KEYWORDS: Final = {
    **dict.fromkeys((*LOG, "DROP", "DENY"), "ACTION"),
    **dict.fromkeys(("SOURCE", "SRC"), "SOURCE"),
    **dict.fromkeys(("DESTINATION", "DST", "DEST"), "DESTINATION"),
    **dict.fromkeys(("TYPE", "PROTOCOL", "STATE", "STATUS", "NAT", "MARK", "ZONE", "FAMILY"), "LIST"),
    **dict.fromkeys(("COUNTRY", "CITY"), "PLACE"),
    **dict.fromkeys(("BYTES", "PACKETS", "DURATION"), "COUNTER"),
    "ICMP ID": "IDENTIFIER",  # one word with a blank in it: ICMP is a protocol, and ID a country
    **{word: word for word in ("OR", "AND", "NOT", "REPLY", "ADDRESS", "NETWORK", "PORT", "ON", "ANY")},
    SAMPLE: SAMPLE,
    LIMIT: LIMIT,
}
# Beside the space. A rule may have line breaks where it is an item of a list.
BLANKS: Final = "\t\r\n"
VALUES: Final = frozenset(("WORD", "NUMBER", "STRING"))
Parsed = tuple[bool, Expression, int, Limit | None]
"""Whether to log, what, the sample and the limit."""
# What is missing, said by the first of these that the parser could go on with.
EXPECTED: Final = {
    "ACTION": "an action ('log' or 'drop')",
    "LIST": "a condition (such as 'protocol', 'source address', 'port', 'any')",
    "ADDRESS": "'address', 'network', 'port', 'country' or 'city'",
    "OPERATOR": "a comparison (< <= = != >= >)",
    "PORT": "'port'",
    "WORD": "a value",
    "RPAREN": "')', 'and' or 'or'",
}
# Words of events and of other tools, where a condition or a part of it is missing.
MEANT: Final = {
    **{name: f"status {name.lower()}" for name in STATUSES},
    **{name: f"state {name.lower()}" for name in STATES},
    **{name: f"family {name.lower()}" for name in FAMILIES},
    **{name: f"protocol {name.lower()}" for name in Protocol.__members__},
    **{name: f"type {name.lower()}" for name in TYPES},
    "PROT": "protocol",
    "SRC": "source address",
    "DST": "destination address",
    **dict.fromkeys(("HOST", "IP", "NET"), "address"),
    "ICMP": "protocol icmp or icmp id",
    "ALL": "any",
    "ACCEPT": "log",
    "SPORT": "source port",
    "DPORT": "destination port",
}

tokens = (
    *dict.fromkeys(KEYWORDS.values()),
    *("WORD", "NUMBER", "STRING", "OPERATOR", "DASH", "COMMA", "LPAREN", "RPAREN"),
)

# -- words

t_ignore = " \t\r\n"
t_ignore_COMMENT = r"\#.*"
t_OPERATOR = r"<=|>=|!=|==|<|>|="
t_NOT = r"!"
t_DASH = r"-"
t_COMMA = r","
t_LPAREN = r"\("
t_RPAREN = r"\)"


def t_STRING(t: lex.LexToken) -> lex.LexToken:
    r'"(?:\\.|[^"\\])*"'
    return t


def t_NUMBER(t: lex.LexToken) -> lex.LexToken:
    r"(?:0[xX][0-9a-fA-F]+|[0-9]+)(?![\w.:/])"
    return t


def t_IDENTIFIER(t: lex.LexToken) -> lex.LexToken:
    r"""[iI][cC][mM][pP][ \t\r\n]+[iI][dD](?![^\s(),!<>="#])"""
    return t


def t_WORD(t: lex.LexToken) -> lex.LexToken:
    r"""[^\s(),!<>="#-][^\s(),!<>="#]*"""
    t.type = KEYWORDS.get(t.value.upper(), "WORD")
    return t


def t_error(t: lex.LexToken) -> None:
    """Where no word begins: only a quote that is never closed."""
    raise Stop(Mistake("a quoted text that does not end", t.lexpos, t.lexpos + 1))


# -- sentences


def p_rule(p: yacc.YaccProduction) -> None:
    """rule : ACTION expression
    | ACTION expression SAMPLE value
    | ACTION expression limit"""
    keep, builder = p[1].text.upper() in LOG, p.parser.builder
    sample = builder.parse_sample(keep, p[3], p[4]) if len(p) == 5 else 0
    p[0] = (keep, p[2], sample, builder.parse_limit(keep, p[3]) if len(p) == 4 else None)


def p_limit(p: yacc.YaccProduction) -> None:
    """limit : LIMIT value
    | limit value"""
    p[0] = [*p[1], p[2]] if isinstance(p[1], list) else [p[1], p[2]]


def p_expression(p: yacc.YaccProduction) -> None:
    """expression : conjunction
    | expression OR conjunction"""
    p[0] = p[1] if len(p) == 2 else disjoin((p[1], p[3]), _span(p))


def p_conjunction(p: yacc.YaccProduction) -> None:
    """conjunction : negation
    | conjunction AND negation"""
    p[0] = p[1] if len(p) == 2 else conjoin((p[1], p[3]), _span(p))


def p_negation(p: yacc.YaccProduction) -> None:
    """negation : primary
    | NOT negation"""
    p[0] = p[1] if len(p) == 2 else negate(p[2], _span(p))


def p_primary(p: yacc.YaccProduction) -> None:
    """primary : predicate
    | LPAREN expression RPAREN"""
    p[0] = p[1] if len(p) == 2 else p[2]


def p_predicate_any(p: yacc.YaccProduction) -> None:
    """predicate : ANY"""
    p[0] = Anything(_span(p))


def p_predicate_list(p: yacc.YaccProduction) -> None:
    """predicate : LIST values"""
    p[0] = p.parser.builder.build(p[1].text.upper(), p[2], _span(p))


def p_predicate_comparison(p: yacc.YaccProduction) -> None:
    """predicate : COUNTER OPERATOR value
    | REPLY COUNTER OPERATOR value"""
    counter, operator, value = p[len(p) - 3], p[len(p) - 2], p[len(p) - 1]
    p[0] = p.parser.builder.build_comparison(
        counter.text.lower(), len(p) == 5, operator.text, value, _span(p)
    )


def p_predicate_identifier(p: yacc.YaccProduction) -> None:
    """predicate : IDENTIFIER ranges
    | REPLY IDENTIFIER ranges"""
    p[0] = p.parser.builder.build_icmp_id(len(p) == 4, p[len(p) - 1], _span(p))


def p_predicate_side(p: yacc.YaccProduction) -> None:
    """predicate : target
    | side target"""
    p[0] = p[1](EITHER, _span(p)) if len(p) == 2 else p[2](p[1], _span(p))


def p_target_address(p: yacc.YaccProduction) -> None:
    """target : ADDRESS values
    | ADDRESS values ON PORT ranges"""
    builder, words = p.parser.builder, p[2]
    ports = builder.parse_ranges("port", p[5]) if len(p) > 3 else None
    p[0] = lambda side, span: builder.build_address(side, words, ports, span)


def p_target_network(p: yacc.YaccProduction) -> None:
    """target : NETWORK values"""
    builder, words = p.parser.builder, p[2]
    p[0] = lambda side, span: builder.build_network(side, words, span)


def p_target_port(p: yacc.YaccProduction) -> None:
    """target : PORT ranges
    | ON PORT ranges"""
    builder = p.parser.builder
    ports = builder.parse_ranges("port", p[len(p) - 1])
    p[0] = lambda side, span: builder.build_ports(side, ports, span)


def p_target_place(p: yacc.YaccProduction) -> None:
    """target : PLACE values"""
    builder, kind, words = p.parser.builder, p[1].text.lower(), p[2]
    p[0] = lambda side, span: builder.build_location(kind, side, words, span)


def p_side(p: yacc.YaccProduction) -> None:
    """side : end
    | REPLY
    | REPLY end"""
    reply = p.slice[1].type == "REPLY"
    p[0] = Side(reply, None if reply and len(p) == 2 else p[len(p) - 1])


def p_end(p: yacc.YaccProduction) -> None:
    """end : SOURCE
    | DESTINATION"""
    p[0] = 0 if p.slice[1].type == "SOURCE" else 1


def p_values(p: yacc.YaccProduction) -> None:
    """values : value
    | values COMMA value"""
    p[0] = [p[1]] if len(p) == 2 else [*p[1], p[3]]


def p_ranges(p: yacc.YaccProduction) -> None:
    """ranges : range
    | ranges COMMA range"""
    p[0] = [p[1]] if len(p) == 2 else [*p[1], p[3]]


def p_range(p: yacc.YaccProduction) -> None:
    """range : value
    | value DASH value"""
    p[0] = (p[1], p[len(p) - 1])


def p_value(p: yacc.YaccProduction) -> None:
    """value : WORD
    | NUMBER
    | STRING
    | ANY"""
    p[0] = p[1]


def p_error(token: lex.LexToken | None) -> None:
    """Only marks the index: which words could stand there is known to the parser's state (see _explain)."""
    raise Unexpected(token)


def _span(p: yacc.YaccProduction) -> tuple[int, int]:
    """From the first word of a production to the end of its last."""
    return p.lexspan(1)[0], p.lexspan(len(p) - 1)[1]


# -- from texts to rules


class Stop(Exception):  # noqa: N818  # never leaves this module
    """A mistake after which the rest of the rule cannot be understood."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(mistake.message)
        self.mistake = mistake


class Unexpected(Exception):  # noqa: N818  # never leaves this module
    """A word (None: the end) that cannot stand where it is."""

    def __init__(self, token: lex.LexToken | None) -> None:
        super().__init__()
        self.token = token


class Words:
    """What the parser takes for its lexer: the words of one rule, cut before."""

    def __init__(self, found: list[lex.LexToken]) -> None:
        self._found = iter(found)
        self.lineno = self.lexpos = 0  # the parser asks for them, and uses neither

    def token(self) -> lex.LexToken | None:
        return next(self._found, None)


def parse_rules(lines: Sequence[RuleText], sets: Sets = NO_SETS) -> list[Rule]:
    """One rule for each text. Raises ManyErrors with a RuleError for each mistake, MAX_MISTAKES at most.

    What they would become is bounded too (cost.py): who has rules may have them compiled.
    """
    if len(lines) > MAX_RULES:
        raise ManyErrors([RuleError(f"{len(lines):,} rules: at most {MAX_RULES:,} are allowed")])
    cost.check_texts(lines)
    rules: list[Rule] = []
    errors: list[ConntrackdError] = []
    for number, line in enumerate(lines, 1):
        try:
            rules.append(parse_rule(line, number, sets))
        except ManyErrors as error:
            errors += error.errors
        if len(errors) > MAX_MISTAKES:
            raise ManyErrors([*errors[:MAX_MISTAKES], RuleError("more mistakes are not shown")])
    if errors:
        raise ManyErrors(errors)
    cost.check_rules(rules)
    return rules


def parse_rule(line: RuleText, number: int = 1, sets: Sets = NO_SETS) -> Rule:
    """One rule, which is the list's `number`th, with these named sets. Raises ManyErrors."""
    origin = line.origin or f"rule {number}"
    if len(line.text) > MAX_LENGTH:
        message = f"a rule of {len(line.text):,} characters: at most {MAX_LENGTH:,} are allowed"
        raise ManyErrors([RuleError(message, origin=origin)])
    parsed, mistakes = _parse(line.text, sets)
    if parsed is None:
        mistakes = _explain_cel(line.text) or mistakes
        raise ManyErrors([mistake.to_error(line.text, origin) for mistake in mistakes])
    keep, expression, sample, limit = parsed
    return Rule(keep, expression, line.text, origin, sample, limit)


def _parse(text: str, sets: Sets = NO_SETS) -> tuple[Parsed | None, list[Mistake]]:
    """What is in a rule, or what is wrong with it."""
    parser = copy.copy(_build_parser())
    parser.builder = Builder(sets)
    mistakes: list[Mistake] = parser.builder.mistakes
    parsed = None
    try:
        found = _cut(text.rstrip())
        parsed = parser.parse(lexer=Words(found), tracking=True)
    except Stop as stop:
        mistakes.append(stop.mistake)
    except Unexpected as unexpected:
        if not mistakes:  # else it may well follow from those
            mistakes.append(_explain(unexpected.token, text, parser))
    return (None if mistakes else parsed), mistakes


def _explain_cel(text: str) -> list[Mistake]:
    """One mistake with one hint for a rule of the later conntrackd, nothing for any other."""
    span = cel.find(text)
    if span is None:
        return []
    ours = cel.translate(text)
    hint = f"in the words of this one: {ours if _parse(ours)[0] else cel.EXAMPLE}"
    return [Mistake("this rule is CEL, the language of another conntrackd", *span, hint)]


@cache
def _build_parser() -> yacc.LRParser:
    """The tables are made once (5 ms); each rule is parsed by a copy, which has its own stacks."""
    return yacc.yacc(
        module=sys.modules[__name__],
        start="rule",
        debug=False,
        write_tables=False,
        errorlog=yacc.NullLogger(),
    )


@cache
def _build_lexer() -> lex.Lexer:
    return lex.lex(module=sys.modules[__name__], errorlog=lex.NullLogger())


def _cut(text: str) -> list[lex.LexToken]:
    """Split a rule into words; commas of lists and commas for `or` get different types. Raises Stop."""
    if not text.isprintable():
        for index, char in enumerate(text):
            if not char.isprintable() and char not in BLANKS:
                raise Stop(Mistake(f"a control character (U+{ord(char):04X})", index, index + 1))
    lexer = _build_lexer().clone()
    lexer.input(text)
    found = list(_measure(lexer))
    _check_nesting(found)
    _classify_ends(found)
    _classify_commas(found)
    return found


def _measure(lexer: lex.Lexer) -> Iterator[lex.LexToken]:
    """Each token with its end, and with a Word for its value."""
    for token in lexer:
        start, end = token.lexpos, token.lexpos + len(token.value)
        text = _unquote(token.value) if token.type == "STRING" else token.value
        token.value, token.endlexpos = Word(text, start, end), end
        yield token


def _unquote(text: str) -> str:
    return "".join(
        part[-1] if part.startswith("\\") else part for part in re.findall(r"\\.|[^\\]", text[1:-1])
    )


def _check_nesting(found: list[lex.LexToken]) -> None:
    depth = 0
    for token in found:
        depth += {"LPAREN": 1, "RPAREN": -1}.get(token.type, 0)
        if depth > MAX_NESTING:
            message = f"parentheses in more than {MAX_NESTING} levels"
            raise Stop(Mistake(message, token.lexpos, token.endlexpos))


def _classify_ends(found: list[lex.LexToken]) -> None:
    """The words are values wherever a condition has not ended before them, and all is behind a limit."""
    ends = VALUES | {"ANY", "RPAREN"}
    is_limit = False
    for place, token in enumerate(found):
        if is_limit or (token.type in {SAMPLE, LIMIT} and (place == 0 or found[place - 1].type not in ends)):
            token.type = "WORD"
        is_limit |= token.type == LIMIT


def _classify_commas(found: list[lex.LexToken]) -> None:
    """See the head of this file; a comma that no value stands before is an `or` too.

    So is one before two words in a row: the first of them must be a keyword that is misspelt.
    """
    keyword = ""
    for index in range(1, len(found) - 1):
        before, token, after = found[index - 1 : index + 2]
        if before.type == "LIST":
            keyword = before.value.text.upper()
        elif before.type not in VALUES | {"ANY", "COMMA"}:
            keyword = ""
        values = VALUES | {"ANY"} if keyword == "NAT" else VALUES
        misspelt = after.type == "WORD" and found[index + 2 : index + 3] and found[index + 2].type in VALUES
        if token.type == "COMMA" and (before.type not in values or after.type not in values or misspelt):
            token.type = "OR"


def _explain(token: lex.LexToken | None, text: str, parser: Any) -> Mistake:  # noqa: ANN401  # ply has no types
    """What was expected instead of this word, from the state in which the parser met it."""
    expected = set(parser.action[parser.state])
    # States of the table are shared by conditions in and outside parentheses, and by the values of a limit.
    if all(symbol.type != "LPAREN" for symbol in parser.symstack):
        expected.discard("RPAREN")
    if "AND" in expected:
        expected -= VALUES
    wanted = next((text for kind, text in EXPECTED.items() if kind in expected), "'and' or 'or'")
    if token is None:
        end = len(text.rstrip())
        return Mistake(f"the rule ends where {wanted} is missing", end, end + 1)
    word = token.value.text
    if expected == {"$end"}:  # only a sample ends a rule for good
        if word.upper() == LIMIT:
            return Mistake(BOTH, token.lexpos, token.endlexpos, BOTH_HINT)
        hint = "a sample ends the rule; conditions stand before it"
        return Mistake(f"unexpected {quote(word)} behind the sample", token.lexpos, token.endlexpos, hint)
    near = _suggest(word, expected) if token.type == "WORD" else ""
    message = f"unexpected {quote(word)}{near}" if near else f"unexpected {quote(word)}: {wanted} is missing"
    wants_value = wanted == EXPECTED["WORD"] and parser.symstack[-1].type != "OPERATOR"  # as bytes have one
    is_compared = wants_value and token.type in {"OPERATOR", "NOT"}
    hint = "values stand without it: port 53, not port 53" if is_compared else ""
    return Mistake(message, token.lexpos, token.endlexpos, hint)


def _suggest(word: str, expected: set[str]) -> str:
    """What may have been meant, of what can stand there."""
    meant = MEANT.get(word.upper()) or MEANT.get(translate(word).upper(), "")
    if KEYWORDS.get(meant.partition(" ")[0].upper()) in expected:
        return f", did you mean {meant}?"
    return suggest(word, [keyword.lower() for keyword in KEYWORDS if KEYWORDS[keyword] in expected])
