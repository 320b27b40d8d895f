// What the server hears of a user, read off the wire between a real VS Code and the real server; with
// the proposed interfaces switched on. Part of `make e2e-vscode`.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import * as path from "node:path";
import { after, afterEach, before, test } from "node:test";
import { startWorkbench } from "./workbench.mjs";

const HERE = path.resolve(import.meta.dirname, "../..");
const ARTEFACTS = path.join(HERE, "artefacts", "messages");

let vscode;

before(async () => {
  await mkdir(ARTEFACTS, { recursive: true });
  vscode = await startWorkbench({
    vsix: path.join(HERE, "keyturn-proposed.vsix"),
    flags: ["--enable-proposed-api", "keyturn.keyturn"],
    keyturn: process.env.KEYTURN,
    artefacts: ARTEFACTS,
    isRecording: true,
    files: {
      "add.py": "def add(a, b, c):\n    return a \n",
      "other.py": "x = 1\n",
      "cells.ipynb": JSON.stringify({
        cells: ["import math", "math.sqrt(2)"].map((source) => ({
          cell_type: "code",
          execution_count: null,
          metadata: {},
          outputs: [],
          source,
        })),
        metadata: { language_info: { name: "python" } },
        nbformat: 4,
        nbformat_minor: 4,
      }),
      // What a repository would bring that wants to choose what runs.
      ".vscode/settings.json": JSON.stringify({
        "keyturn.server.path": "/bin/false",
        "keyturn.model": "/elsewhere.gguf",
        "keyturn.max_tokens": 20,
      }),
    },
    settings: {
      "editor.wordBasedSuggestions": "off",
      "keyturn.num_threads": 1,
      "keyturn.cold_wait_ms": 1, // what is not computed at once comes after keyturn/refresh
    },
  });
  await vscode.untilStatus(({ text }) => text === "Keyturn");
});

after(() => vscode?.close());

afterEach(async ({ passed, name }) => {
  if (!passed) await vscode?.shot(`failed-${name.replace(/\W+/g, "-")}`);
});

const isFile = (uri, name) => uri.startsWith("file:") && uri.endsWith(`/${name}`);

test("it is told that keyturn/refresh is understood", async () => {
  const { params } = await vscode.untilSent(({ method }) => method === "initialize");
  assert.deepEqual(params.capabilities.experimental.keyturn, { refresh: true });
  assert.ok(params.capabilities.textDocument.inlineCompletion);
});

test("it is told the changed settings, and none that a workspace may not choose", async () => {
  const { result } = await vscode.untilSent(({ result }) => Array.isArray(result));
  assert.deepEqual(result, [
    { host_idle_s: 5, num_threads: 1, max_tokens: 20, cold_wait_ms: 1 },
  ]);
});

test("it hears which document is looked at, and where the cursor goes", async () => {
  await vscode.open("other.py");
  await vscode.open("add.py");
  await vscode.untilSent(
    ({ method, params }) =>
      method === "textDocument/didFocus" && isFile(params.textDocument.uri, "add.py"),
  );
  await vscode.goTo(2, 13);
  await vscode.untilSent(
    ({ method, params }) =>
      method === "keyturn/cursor" &&
      isFile(params.textDocument.uri, "add.py") &&
      params.position.line === 1 &&
      params.position.character === 13,
  );
});

test("typing is no move of the cursor; what is shown and partly accepted is reported", async () => {
  const before = await vscode.sent();
  await vscode.type("+ ");
  const ghost = await vscode.untilGhost();
  await vscode.shot("ghost-text");
  const { params } = await vscode.untilSent(
    ({ method }) => method === "textDocument/didShowCompletion",
  );
  assert.ok(params.item.insertText.includes(ghost.trim()), JSON.stringify(params));
  const [id] = params.item.command.arguments;
  await vscode.press("Control+ArrowRight");
  const part = await vscode.untilSent(
    ({ method }) => method === "textDocument/didPartiallyAcceptCompletion",
  );
  assert.ok(part.params.acceptedLength > 0);
  assert.deepEqual(part.params.item.command.arguments, [id]);
  const after = (await vscode.sent()).slice(before.length);
  assert.ok(after.some(({ method }) => method === "textDocument/didChange"));
  assert.ok(!after.some(({ method }) => method === "keyturn/cursor"));
});

test("a place that was not ready is asked for again when keyturn/refresh says so", async () => {
  const requests = (await vscode.sent()).filter(
    ({ method, params }) =>
      method === "textDocument/inlineCompletion" && isFile(params.textDocument.uri, "add.py"),
  );
  const isInvoked = ({ params }) => params.context.triggerKind === 1;
  const first = requests.findIndex(isInvoked);
  assert.ok(first > 0, "nothing was asked for again");
  assert.deepEqual(requests[first].params.position, requests[first - 1].params.position);
});

test("what is accepted runs the item's command", async () => {
  await vscode.untilGhost();
  await vscode.press("Tab");
  const accepted = await vscode.untilSent(
    ({ method, params }) =>
      method === "workspace/executeCommand" && params.command === "keyturn.didAcceptCompletion",
  );
  assert.equal(accepted.params.arguments.length, 1);
});

test("documents without a file and notebook cells are sent, the output never", async () => {
  await vscode.command("Keyturn: Show Log");
  await vscode.press("Control+Alt+N");
  const isOpened = (scheme) => (message) =>
    message.method === "textDocument/didOpen" && message.params.textDocument.uri.startsWith(scheme);
  await vscode.untilSent(isOpened("untitled:"));
  await vscode.open("cells.ipynb");
  await vscode.untilSent(isOpened("vscode-notebook-cell:"));
  await vscode.shot("notebook");
  const opened = (await vscode.sent()).filter(isOpened(""));
  for (const { params } of opened)
    assert.match(params.textDocument.uri, /^(file|untitled|vscode-notebook-cell):/);
});
