// Events as they come, those that a rule keeps; and who talks most.

import { _, button, card, element, number, row, table } from "./dom.js";
import { follow, toggle } from "./command.js";

const MOST_ROWS = 200;
const BY = [
    ["src", () => _("Source")],
    ["dst", () => _("Destination")],
    ["port", () => _("Port")],
    ["country", () => _("Country")],
];

function address(host, port) {
    if (host === undefined)
        return "";
    return port === undefined ? host : host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/* The names that the databases have for one end. */
function describePlace(event, end) {
    return ["city", "country", "as_org"].map(name => event[end + name]).filter(Boolean).join(", ");
}

function describeEvent(event) {
    const nat = event.nat_src === undefined
        ? ""
        : `${address(event.nat_src, event.nat_sport)} → ${address(event.nat_dst, event.nat_dport)}`;
    return [
        new Date(event.time).toLocaleTimeString(),
        event.type,
        event.prot || "",
        event.src === undefined ? event.msg || "" : address(event.src, event.sport),
        address(event.dst, event.dport),
        nat,
        [...new Set([describePlace(event, "src_"), describePlace(event, "")])].filter(Boolean).join(" → "),
    ];
}

export function createTail(daemon) {
    const columns = [_("Time"), _("Type"), _("Protocol"), _("Source"), _("Destination"), _("After NAT"), _("Where")];
    const rule = element("input", { id: "tail-rule", type: "text", spellcheck: "false", placeholder: "log destination port 443" });
    const go = button(_("Follow"), () => {}, { id: "tail-start" });
    const status = element("pre", { id: "tail-status", role: "status", class: "error" });
    const shown = table(columns, [], { id: "tail-events" });
    const body = shown.querySelector("tbody");

    toggle(go, status, [_("Follow"), _("Stop")], ended => {
        body.replaceChildren();
        const rules = rule.value.trim() ? ["--filter", rule.value.trim()] : [];
        return follow(["tail", "--json", ...rules], event => {
            body.prepend(row(columns, describeEvent(event)));
            body.children[MOST_ROWS]?.remove();
        }, ended);
    });
    daemon.addEventListener("owner", () => { go.disabled = !daemon.running });
    const label = element("label", { for: "tail-rule" }, _("Rule"));
    return card("tail", _("Live events"), element("div", { class: "controls" }, label, rule, go), status,
                element("div", { class: "scroll", tabindex: "0" }, shown));
}

export function createTop(daemon) {
    const by = element("select", { id: "top-by" }, BY.map(([name, title]) => element("option", { value: name }, title())));
    const go = button(_("Count"), () => {}, { id: "top-start" });
    const status = element("pre", { id: "top-status", role: "status", class: "error" });
    const list = element("div", { id: "top-list" });

    toggle(go, status, [_("Count"), _("Stop")], ended =>
        follow(["top", "--json", "--by", by.value], view => list.replaceChildren(renderTop(view)), ended));
    daemon.addEventListener("owner", () => { go.disabled = !daemon.running });
    const label = element("label", { for: "top-by" }, _("By"));
    return card("top", _("Top talkers"), element("div", { class: "controls" }, label, by, go), status, list);
}

function renderTop(view) {
    const columns = [_("What"), _("Events"), _("Bytes")];
    return table(columns, view.top.map(line => [String(line.key), number(line.events), number(line.bytes)]));
}
