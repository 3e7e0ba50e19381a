// Made by po/make.py from the translation beside it.
cockpit.locale({
"": {"plural-forms": (n) => (n != 1), "language": "de", "language-direction": "ltr"},
"Connections": [null, "Verbindungen"],
"connection": [null, "Verbindung"],
"conntrack": [null, "conntrack"],
"conntrackd": [null, "conntrackd"],
"firewall": [null, "Firewall"],
"log": [null, "Protokoll"],
"nat": [null, "NAT"]
});
