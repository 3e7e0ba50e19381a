// Where events go: state, error and counters of each sink, and its switch.

import { sumDropped } from "./daemon.js";
import { _, button, card, describe, element, number, table } from "./dom.js";

export function createSinks(daemon) {
    const status = element("pre", { id: "sinks-status", role: "status" });
    const list = element("div", { id: "sinks-list" });

    async function call(name, method) {
        try {
            const [answer] = await daemon.callSink(name, method);
            status.className = "ok";
            status.textContent = Array.isArray(answer) ? answer.join("\n") : cockpit.format(answer ? _("$0: emptied") : _("$0: not emptied in time"), name);
        } catch (error) {
            status.className = "error";
            status.textContent = describe(error);
        }
        await daemon.sample();
    }

    function renderSink([name, sink]) {
        const counters = (daemon.statistics && daemon.statistics.sinks[name]) || {};
        const is_on = sink.State !== "disabled";
        const flip = button(is_on ? _("On") : _("Off"), () => call(name, is_on ? "Disable" : "Enable"),
                            { id: `sink-${name}-switch`, role: "switch", "aria-checked": String(is_on), "aria-label": name });
        const flush = button(_("Flush"), () => call(name, "Flush"), { id: `sink-${name}-flush`, "aria-label": cockpit.format(_("Flush $0"), name) });
        const state = element("span", { class: sink.State === "ok" ? "ok" : "warning" }, sink.State);
        const waiting = (counters.sink_events_queued || 0) + (counters.sink_events_spooled || 0);
        return [
            name,
            sink.LastError ? element("div", {}, state, element("pre", {}, sink.LastError)) : state,
            number(counters.sink_events_delivered_total || 0),
            number(waiting),
            number(sumDropped(counters)),
            element("div", { class: "controls" }, flip, flush),
        ];
    }

    daemon.addEventListener("changed", () => {
        if (list.querySelector("button:active"))
            return; // a click that is under way would be lost
        const focused = document.activeElement && document.activeElement.id;
        const columns = [_("Sink"), _("State"), _("Delivered"), _("Waiting"), _("Dropped"), _("Switch")];
        list.replaceChildren(table(columns, Object.entries(daemon.sinks).map(renderSink)));
        if (focused && list.querySelector(`#${CSS.escape(focused)}`))
            document.getElementById(focused).focus(); // a drawing anew must not take the keyboard away
    });
    return card("sinks", _("Sinks"), status, list);
}
