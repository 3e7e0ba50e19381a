// The daemon as its D-Bus interface shows it, org.conntrackd1(5). With administrative access calls go through
// Cockpit's privileged bridge, without it as the user: what each may do is polkit's decision alone.

const NAME = "org.conntrackd1";
const PATH = "/org/conntrackd1";
const MANAGER = "org.conntrackd1.Manager";
const SINK = "org.conntrackd1.Sink";
const SAMPLE_MS = 2000;

export class Daemon extends EventTarget {
    /* Events: `owner` when the daemon comes or goes, `sample` with new statistics, `changed` with new properties. */
    constructor() {
        super();
        this.running = null;
        this.properties = {};
        this.sinks = {};
        this.paths = {};
        this.statistics = null;
        this.client = cockpit.dbus(NAME, { bus: "system", superuser: "try" });
        this.client.addEventListener("owner", (_event, owner) => this.setOwner(owner));
        this.client.addEventListener("close", (_event, options) => this.setOwner(null, options));
        this.client.subscribe({ path_namespace: PATH }, () => this.refresh());
        cockpit.addEventListener("visibilitychange", () => this.sample());
        window.setInterval(() => this.sample(), SAMPLE_MS);
    }

    call(method, types = "", ...values) {
        return this.client.call(PATH, MANAGER, method, values, { type: types });
    }

    callSink(name, method) {
        return this.client.call(this.paths[name], SINK, method, [], { type: "" });
    }

    setOwner(owner, options = {}) {
        this.running = Boolean(owner);
        this.problem = options.problem || options.message || null;
        this.dispatchEvent(new Event("owner"));
        if (this.running)
            this.sample();
    }

    /* Statistics and properties of now, unless nobody looks. */
    async sample() {
        if (!this.running || cockpit.hidden)
            return;
        try {
            const [counters, sinks, matches] = await this.call("GetStatistics");
            this.statistics = { at: Date.now(), counters: unwrap(counters), sinks: unwrap(sinks), matches };
            await this.refresh();
            this.dispatchEvent(new Event("sample"));
        } catch (error) {
            this.problem = error.problem || error.message;
            this.dispatchEvent(new Event("refused"));
        }
    }

    async refresh() {
        this.properties = await this.getAll(PATH, MANAGER);
        // In one call, and by their own names: a path has no hyphen, and a reload may remove a sink in between.
        const [objects] = await this.client.call(PATH, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects", [],
                                                 { type: "" });
        const found = Object.entries(objects).map(([path, interfaces]) => [path, unwrap(interfaces[SINK])]);
        for (const [path, sink] of found)
            this.paths[sink.Name] = path; // none is forgotten: the daemon says of a sink that went that it is none
        this.sinks = Object.fromEntries(found.map(([_path, sink]) => [sink.Name, sink]));
        this.dispatchEvent(new Event("changed"));
    }

    async getAll(path, interface_) {
        const [properties] = await this.client.call(path, "org.freedesktop.DBus.Properties", "GetAll", [interface_],
                                                    { type: "s" });
        return unwrap(properties);
    }
}

/* What a sink has dropped, for whatever reason. */
export function sumDropped(counters) {
    return Object.entries(counters).filter(([name]) => name.startsWith("sink_events_dropped_"))
        .reduce((sum, [, value]) => sum + value, 0);
}

/* Variants as Cockpit has them ({t, v}) -> their values. */
function unwrap(values) {
    return Object.fromEntries(Object.entries(values).map(
        ([name, value]) => [name, value !== null && typeof value === "object" && "v" in value ? value.v : value]));
}
