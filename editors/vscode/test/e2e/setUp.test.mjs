// Where there is no server the extension makes one, once it is allowed to, from the wheel that it
// carries. Skipped when no wheel was built into the package. Part of `make e2e-vscode`.

import { execFileSync } from "node:child_process";
import { mkdir } from "node:fs/promises";
import * as path from "node:path";
import { after, afterEach, before, test } from "node:test";
import { startWorkbench } from "./workbench.mjs";

const HERE = path.resolve(import.meta.dirname, "../..");
const VSIX = path.join(HERE, "keyturn.vsix");
const ARTEFACTS = path.join(HERE, "artefacts", "set-up");

const listed = execFileSync("python3", ["-m", "zipfile", "-l", VSIX], { encoding: "utf8" });
const skip = /server\/keyturn-\S+\.whl/.test(listed) ? false : "no wheel was built into the package";

let vscode;

before(async () => {
  if (skip) return;
  await mkdir(ARTEFACTS, { recursive: true });
  vscode = await startWorkbench({
    vsix: VSIX,
    artefacts: ARTEFACTS,
    files: { "fib.py": "def add(a, b):\n    return a " },
    settings: { "editor.wordBasedSuggestions": "off", "keyturn.num_threads": 1 },
  });
});

after(() => vscode?.close());

afterEach(async ({ passed }) => {
  if (!passed) await vscode?.shot("failed");
});

test("without a server the status bar says so, and an offer is made", { skip }, async () => {
  await vscode.untilStatus(({ text }) => text === "Keyturn: no server");
  await vscode.page.waitForSelector('.notification-toast :text("found none on PATH")');
  await vscode.shot("no-server");
});

test("with consent it is set up, and completes", { skip }, async () => {
  await vscode.page.click('.notification-toast .monaco-button:has-text("Set Up…")');
  await vscode.page.waitForSelector('.monaco-dialog-box:has-text("fixed by its hash")');
  await vscode.shot("consent");
  await vscode.page.click('.monaco-dialog-box .monaco-button:has-text("Set Up")');
  await vscode.page.waitForSelector('.notification-toast :text("PyTorch")');
  await vscode.shot("progress");
  await vscode.untilStatus(({ text }) => text === "Keyturn", 540_000);
  await vscode.open("fib.py");
  await vscode.goTo(2, 13);
  await vscode.type("+ ");
  await vscode.untilGhost((text) => text.startsWith("b"));
  await vscode.shot("completes");
});
