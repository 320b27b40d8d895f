// A folder that nobody trusts and that wants to choose what runs, in a real VS Code in restricted
// mode: it is completed, by the user's own server and settings. Part of `make e2e-vscode`.

import assert from "node:assert/strict";
import { access, mkdir, mkdtemp, rm } from "node:fs/promises";
import * as path from "node:path";
import { after, afterEach, before, test } from "node:test";
import { startWorkbench } from "./workbench.mjs";

const HERE = path.resolve(import.meta.dirname, "../..");
const ARTEFACTS = path.join(HERE, "artefacts", "untrusted");

let vscode;
let folder; // in which the workspace's program would leave a trace

before(async () => {
  await mkdir(ARTEFACTS, { recursive: true });
  folder = await mkdtemp("/tmp/ktu");
  vscode = await startWorkbench({
    vsix: path.join(HERE, "keyturn.vsix"),
    keyturn: process.env.KEYTURN,
    artefacts: ARTEFACTS,
    isRecording: true,
    files: {
      "add.py": "def add(a, b, c):\n    return a \n",
      ".vscode/settings.json": JSON.stringify({
        "keyturn.server.path": "/usr/bin/touch",
        "keyturn.server.args": [path.join(folder, "ran")],
        "keyturn.model": "/elsewhere.gguf",
        "keyturn.hide_secrets": false,
        "keyturn.max_tokens": 20,
      }),
    },
    settings: {
      "editor.wordBasedSuggestions": "off",
      "keyturn.num_threads": 1,
      "security.workspace.trust.enabled": true,
      "security.workspace.trust.startupPrompt": "never",
    },
  });
});

after(async () => {
  await vscode?.close();
  await rm(folder, { recursive: true, force: true });
});

afterEach(async ({ passed, name }) => {
  if (!passed) await vscode?.shot(`failed-${name.replace(/\W+/g, "-")}`);
});

test("the editor is in restricted mode", async () => {
  await vscode.page.waitForSelector('.statusbar-item:has-text("Restricted Mode")');
});

test("the user's server runs, with what a workspace may choose and nothing else of its settings", async () => {
  await vscode.untilStatus(({ text }) => text === "Keyturn");
  const { result } = await vscode.untilSent(({ result }) => Array.isArray(result));
  assert.deepEqual(result, [
    { host_idle_s: 5, num_threads: 1, max_tokens: 20, other_files: false },
  ]);
  await assert.rejects(access(path.join(folder, "ran")), "the workspace's program was run");
});

test("it completes", async () => {
  await vscode.open("add.py");
  await vscode.goTo(2, 13);
  await vscode.type("+ ");
  assert.match(await vscode.untilGhost(), /^b/);
  await vscode.shot("ghost-text");
});
