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

/** What stands on the line that is typed on, without its indentation. */
async function written() {
  const text = await vscode.saved(FILE);
  assert.ok(text.startsWith(HEAD) && text.endsWith(TAIL), `more than a line has changed:\n${text}`);
  return text.slice(HEAD.length, text.length - TAIL.length).replace(/^ {4}/, "");
}

test("the engine starts, and the status bar says so", async () => {
  await vscode.untilStatus(({ text }) => /Keyturn: (starting|loading)/.test(text));
  await vscode.open(FILE);
  await vscode.shot("starting");
  await vscode.untilStatus(({ text }) => text === "Keyturn");
  await vscode.shot("ready");
});

let suggestion;

test("typing shows a suggestion as ghost text", async () => {
  await vscode.goTo(LINE, 4);
  await vscode.type("return ");
  suggestion = await vscode.untilGhost();
  await vscode.shot("ghost-text");
  assert.match(suggestion, /^fibonacci\(/);
  assert.equal(await written(), "return ");
});

test("a word is accepted, and the rest stays", async () => {
  await vscode.press("Control+ArrowRight");
  await vscode.untilGhost((text) => text === suggestion.slice("fibonacci".length));
  await vscode.shot("a-word-accepted");
  assert.equal(await written(), "return fibonacci");
});

test("all is accepted", async () => {
  await vscode.press("Tab");
  await vscode.untilText(`return ${suggestion}`);
  await vscode.shot("all-accepted");
  assert.equal(await written(), `return ${suggestion}`);
});

test("undo brings back what was there, and nothing that is not asked for", async () => {
  await vscode.press("Control+Z");
  await vscode.press("Control+Z");
  const back = await written();
  await vscode.shot("undone");
  assert.equal(back, "return ");
  await vscode.command("Keyturn: Suggest Now");
  assert.equal(await vscode.untilGhost(), suggestion);
});

test("typing what is suggested keeps the rest", async () => {
  for (let typed = 1; typed <= 6; typed++) {
    await vscode.type(suggestion[typed - 1]);
    await vscode.untilGhost((text) => text === suggestion.slice(typed));
  }
  await vscode.shot("typed-through");
  assert.equal(await written(), `return ${suggestion.slice(0, 6)}`);
  await vscode.press("Tab");
  await vscode.untilText(`return ${suggestion}`);
  assert.equal(await written(), `return ${suggestion}`);
});

test("the engine is killed: the status bar says so, and suggestions come back", async () => {
  await eraseTo("return ");
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
    const runs = (await read("cmdline")).split("\0").includes("engine");
    if (runs && (await read("environ")).includes(`XDG_RUNTIME_DIR=${vscode.runtime}\0`))
      found.push(Number(name));
  }
  return found;
}
