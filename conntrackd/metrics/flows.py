"""What metrics.flows asks for, in force: connections counted by the values of fields.

Counted are the NEW and DESTROY events that the global filter keeps; `where` decides like a sink's own filter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from conntrackd.bus.control import FlowCounts
from conntrackd.config import options
from conntrackd.config.flow_metrics import FIELDS, FlowMetricSetting
from conntrackd.config.read import Config
from conntrackd.engine import Engine, RuleTable, Series, SeriesField
from conntrackd.errors import ConntrackdError, ManyErrors
from conntrackd.filter.ast import Rule
from conntrackd.filter.diagnostics import RuleText
from conntrackd.filter.grammar import parse_rule, parse_rules
from conntrackd.filter.limit import refuse_limits
from conntrackd.filter.sets import Sets

if TYPE_CHECKING:
    from conntrackd.pipeline import Pipeline

NO_LIMIT: Final = "a limit would count what opens and not what closes"


@dataclass(frozen=True, slots=True)
class FlowMetric:
    """One item of the setting."""

    setting: FlowMetricSetting
    series: Series
    tables: tuple[RuleTable, ...]
    """What decides which are counted, one for each reader; none where all are."""

    def snapshot(self) -> FlowCounts:
        """Under the pipeline's lock."""
        series = self.series
        return FlowCounts(self.setting, series.list(), series.other, series.overflows)


def open_flow_metrics(config: Config, pipeline: "Pipeline", sets: Sets) -> tuple[FlowMetric, ...]:
    """For these settings and sets; what has the setting of one in force counts on. Raises all mistakes."""
    series = {metric.setting: metric.series for metric in pipeline.flow_metrics}
    engine, readers = pipeline.engine, len(pipeline.readers)
    found = []
    mistakes: list[ConntrackdError] = []
    for setting, texts in list_conditions(config):
        try:
            rules = parse_condition(texts, sets)
        except ManyErrors as error:
            mistakes += error.errors
            continue
        tables = tuple(engine.compile_table(rules) for _ in range(readers)) if rules else ()
        if setting not in series:
            series[setting] = _open_series(setting, engine)
        found.append(FlowMetric(setting, series[setting], tables))
    if mistakes:
        raise ManyErrors(mistakes)
    return tuple(found)


def list_conditions(config: Config) -> Iterator[tuple[FlowMetricSetting, list[RuleText]]]:
    """Each item, and its rules with where it stands."""
    option = options.METRICS_FLOWS
    for number, setting in enumerate(config[option]):
        origin = f"{config.locate(option, number)}: {setting.name}"
        yield setting, [RuleText(rule, origin) for rule in setting.where]


def parse_condition(texts: Sequence[RuleText], sets: Sets) -> list[Rule]:
    """Rules, so that what none matches is counted where the last one is a drop, and else is not.

    `log destination port 22` alone is what a person says for these, and has to mean it. Raises ManyErrors.
    """
    rules = parse_rules(texts, sets)
    refuse_limits(rules, NO_LIMIT)
    if rules and rules[-1].keep:
        rules.append(parse_rule(RuleText("drop any")))
    return rules


def _open_series(setting: FlowMetricSetting, engine: Engine) -> Series:
    outputs = [FIELDS[name] for name in setting.by]
    fields = [SeriesField(output.attribute, needs_nat="nat" in output.needs) for output in outputs]
    return engine.open_series(fields, setting.max_series)
