// What a user does, in a real VS Code with the real server and the embedded model. Run by
// `make e2e-vscode`; pictures of each step are left in editors/vscode/artefacts.

import assert from "node:assert/strict";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import * as path from "node:path";
import { after, afterEach, before, test } from "node:test";
import { ITEM, startWorkbench } from "./workbench.mjs";

const HERE = path.resolve(import.meta.dirname, "../..");
const ARTEFACTS = path.join(HERE, "artefacts");

const FILE = "fib.py";
const HEAD = `def fibonacci(n):
    """Return the n-th Fibonacci number."""
    if n < 2:
        return n
`;
const TAIL = "\n\n\nprint(fibonacci(10))\n";
const LINE = 5;

let vscode;

before(async () => {
  await rm(ARTEFACTS, { recursive: true, force: true });
  await mkdir(ARTEFACTS, { recursive: true });
  vscode = await startWorkbench({
    vsix: path.join(HERE, "keyturn.vsix"),
    keyturn: process.env.KEYTURN,
    artefacts: ARTEFACTS,
    files: { [FILE]: HEAD + "    " + TAIL, "notes.md": "" },
    // No menu over the grey text, in the pictures and under the keys that are pressed.
    settings: { "editor.wordBasedSuggestions": "off", "keyturn.num_threads": 1 },
  });
});

after(() => vscode?.close());

afterEach(async ({ passed, name }) => {
  if (!passed) await vscode?.shot(`failed-${name.replace(/\W+/g, "-")}`);
});

/** The file, as it is saved, has `text` on the line that is typed on, and nothing else has changed. */
async function written(text) {
  await vscode.saved(FILE, `${HEAD}    ${text}${TAIL}`);
}

test("the engine starts, and the status bar says so", async () => {
  await vscode.untilStatus(({ text }) => /Keyturn: (starting|loading)/.test(text));
  await vscode.open(FILE);
  await vscode.shot("starting");
  await vscode.untilStatus(({ text }) => text === "Keyturn");
  await vscode.shot("ready");
});

// The model is sure of what comes here.
const BEGUN = "return fibonacci(n - 1) + ";
let suggestion;

test("typing shows a suggestion as ghost text", async () => {
  await vscode.goTo(LINE, 4);
  await vscode.type(BEGUN);
  suggestion = await vscode.untilGhost();
  await vscode.shot("ghost-text");
  assert.match(suggestion, /^fibonacci\(/);
  await written(BEGUN);
});

test("a word is accepted, and the rest stays", async () => {
  await vscode.press("Control+ArrowRight");
  await vscode.untilGhost((text) => text === suggestion.slice("fibonacci".length));
  await vscode.shot("a-word-accepted");
  await written(`${BEGUN}fibonacci`);
});

test("all is accepted", async () => {
  await vscode.press("Tab");
  await vscode.untilText(`${BEGUN}${suggestion}`);
  await vscode.shot("all-accepted");
  await written(`${BEGUN}${suggestion}`);
});

test("undo brings back what was there, and nothing that is not asked for", async () => {
  await vscode.press("Control+Z");
  await vscode.press("Control+Z");
  await vscode.untilText(BEGUN);
  await vscode.shot("undone");
  await written(BEGUN);
  await vscode.command("Keyturn: Suggest Now");
  assert.equal(await vscode.untilGhost(), suggestion);
});

test("typing what is suggested keeps the rest", async () => {
  for (let typed = 1; typed <= 6; typed++) {
    await vscode.type(suggestion[typed - 1]);
    await vscode.untilGhost((text) => text === suggestion.slice(typed));
  }
  await vscode.shot("typed-through");
  await written(`${BEGUN}${suggestion.slice(0, 6)}`);
  await vscode.press("Tab");
  await vscode.untilText(`${BEGUN}${suggestion}`);
  await written(`${BEGUN}${suggestion}`);
});

test("the engine is killed: the status bar says so, and suggestions come back", async () => {
  await eraseTo(BEGUN);
  const [pid] = await hosts();
  assert.ok(pid, "no engine host runs");
  process.kill(pid, "SIGKILL");
  const { text, help } = await vscode.untilStatus((status) => status.text !== "Keyturn");
  await vscode.shot("engine-killed");
  assert.match(text, /^Keyturn: \S/);
  assert.notEqual(help, "");
  await vscode.untilStatus((status) => status.text === "Keyturn");
  await vscode.command("Keyturn: Suggest Now");
  assert.equal(await vscode.untilGhost(), suggestion);
  await vscode.shot("recovered");
  const [other] = await hosts();
  assert.notEqual(other, pid);
});

test("a paused file gets nothing, until it is resumed", async () => {
  await vscode.press("Escape");
  await vscode.command("Keyturn: Pause in This File");
  await vscode.untilStatus((status) => status.text.startsWith("Keyturn: paused"));
  await vscode.type("f");
  await vscode.page.waitForTimeout(3000);
  await vscode.shot("paused");
  assert.equal(await vscode.ghost(), "");
  await vscode.command("Keyturn: Resume");
  await vscode.untilStatus((status) => status.text === "Keyturn");
  await vscode.type("i");
  await vscode.untilGhost((text) => text.startsWith("bonacci("));
});

test("the engine is restarted from the menu of the status bar", async () => {
  const [pid] = await hosts();
  await vscode.page.click(ITEM);
  await vscode.page.waitForSelector('.quick-input-list .monaco-list-row:has-text("Restart Engine")');
  await vscode.shot("menu");
  await vscode.choose("Restart Engine");
  await vscode.eventually("another host", async () => {
    const now = await hosts();
    return now.length === 1 && now[0] !== pid;
  });
  await vscode.untilStatus((status) => status.text === "Keyturn");
});

/** Take the line back to its beginning `text`. */
async function eraseTo(text) {
  await vscode.goTo(LINE, 4);
  await vscode.press("Shift+End");
  await vscode.press("Delete");
  await vscode.type(text);
}

/** Process numbers of the engine hosts that this editor's server has started. */
async function hosts() {
  const found = [];
  for (const name of await readdir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const read = (file) => readFile(`/proc/${name}/${file}`, "utf8").catch(() => "");
    const runs = (await read("cmdline")).split("\0").includes("keyturn.engine.host.host");
    if (runs && (await read("environ")).includes(`XDG_RUNTIME_DIR=${vscode.runtime}\0`))
      found.push(Number(name));
  }
  return found;
}
