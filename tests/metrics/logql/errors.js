// LogQL expressions as JSON on stdin -> for each of them, what does not parse in it, as JSON.
// Run in the folder into which npm has put the parser: an import is resolved from where the script stands.
import { readFileSync } from "node:fs";
import { parser } from "@grafana/lezer-logql";

function findErrors(expression) {
    const found = [];
    parser.parse(expression).iterate({
        enter: node => {
            if (node.type.isError)
                found.push(expression.slice(node.from, node.to) || `at ${node.from}`);
        },
    });
    return found;
}

const expressions = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(expressions.map(findErrors)));
