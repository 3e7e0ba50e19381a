// Events a second as lines that move: received, logged, lost, dropped.

import { sumDropped } from "./daemon.js";
import { _, card, element, number } from "./dom.js";

const SAMPLES = 60;
const [WIDTH, HEIGHT] = [240, 48];
const SVG = "http://www.w3.org/2000/svg";

const GRAPHS = [
    { id: "received", title: () => _("Received"), read: ({ counters }) => counters.events_received_total },
    { id: "accepted", title: () => _("Logged"), read: ({ counters }) => counters.events_accepted_total },
    { id: "lost", title: () => _("Lost"), read: ({ counters }) => counters.events_lost_total, bad: true },
    { id: "dropped", title: () => _("Dropped by sinks"), read: ({ sinks }) => Object.values(sinks).reduce((sum, sink) => sum + sumDropped(sink), 0), bad: true },
];

export function createCounters(daemon) {
    const graphs = GRAPHS.map(createGraph);
    daemon.addEventListener("sample", () => graphs.forEach(graph => graph.add(daemon.statistics)));
    daemon.addEventListener("owner", () => graphs.forEach(graph => graph.clear()));
    return card("counters", _("Events"), element("div", { class: "graphs" }, graphs.map(graph => graph.figure)));
}

function createGraph({ id, title, read, bad }) {
    const line = document.createElementNS(SVG, "polyline");
    const picture = document.createElementNS(SVG, "svg");
    picture.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    picture.setAttribute("preserveAspectRatio", "none");
    picture.setAttribute("aria-hidden", "true");
    picture.append(line);
    const total = element("strong", { id: `total-${id}` }, "–");
    const rate = element("span", { id: `rate-${id}`, class: "rate" });
    const figure = element("figure", {}, element("figcaption", {}, title(), " ", total, rate), picture);
    let last = null;
    let rates = [];

    function clear() {
        [last, rates] = [null, []];
        total.textContent = "–";
        rate.textContent = "";
        line.setAttribute("points", "");
    }

    function add(statistics) {
        const value = read(statistics);
        if (last !== null && statistics.at > last.at) {
            // A counter that is lower than before is that of a new process.
            const gained = Math.max(0, value - last.value);
            rates = [...rates, gained * 1000 / (statistics.at - last.at)].slice(-SAMPLES);
            rate.textContent = ` ${cockpit.format(_("$0 a second"), number(Math.round(rates[rates.length - 1])))}`;
        }
        last = { at: statistics.at, value };
        total.textContent = number(value);
        figure.classList.toggle("bad", Boolean(bad) && value > 0);
        line.setAttribute("points", plot(rates));
    }

    return { figure, add, clear };
}

function plot(rates) {
    const highest = Math.max(1, ...rates);
    return rates.map((rate, place) => {
        const x = WIDTH - (rates.length - 1 - place) * WIDTH / (SAMPLES - 1);
        return `${x.toFixed(1)},${(HEIGHT - 2 - rate / highest * (HEIGHT - 4)).toFixed(1)}`;
    }).join(" ");
}
