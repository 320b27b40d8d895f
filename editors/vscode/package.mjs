// Packs the extension: node package.mjs [--proposed] [--wheel FILE]. `make vsix` says how.

import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import * as path from "node:path";
import { parseArgs } from "node:util";

const { proposed, wheel } = parseArgs({
  options: { proposed: { type: "boolean" }, wheel: { type: "string" } },
}).values;

const here = import.meta.dirname;
const stage = path.join(here, "out/vsix");
rmSync(stage, { recursive: true, force: true });
mkdirSync(stage, { recursive: true });

const { scripts, devDependencies, private: _, ...manifest } = JSON.parse(
  readFileSync(path.join(here, "package.json"), "utf8"),
);
if (proposed) manifest.enabledApiProposals = ["inlineCompletionsAdditions"];
writeFileSync(path.join(stage, "package.json"), JSON.stringify(manifest));
cpSync(path.join(here, "../../LICENSE"), path.join(stage, "LICENSE"));
for (const name of ["README.md", "dist", "walkthrough", "images"])
  cpSync(path.join(here, name), path.join(stage, name), { recursive: true });
if (wheel) {
  mkdirSync(path.join(stage, "server"));
  cpSync(wheel, path.join(stage, "server", path.basename(wheel)));
  cpSync(path.join(here, "requirements"), path.join(stage, "server"), { recursive: true });
}
writeFileSync(path.join(stage, ".vscodeignore"), ""); // what is staged is what is packed
const vsce = path.join(here, "node_modules/@vscode/vsce/vsce");
const flags = ["--no-dependencies", "--allow-missing-repository", "--no-rewrite-relative-links"];
flags.push("--out", path.join(here, proposed ? "keyturn-proposed.vsix" : "keyturn.vsix"));
execFileSync(process.execPath, [vsce, "package", ...flags], { cwd: stage, stdio: "inherit" });
console.log(
  wheel
    ? `The server of ${path.basename(wheel)} is in it.`
    : "No wheel of the server was built into it: it needs a keyturn that is installed. make dist vsix builds one in.",
);
