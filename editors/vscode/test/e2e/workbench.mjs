// A real VS Code (code-server) in headless Chromium: started on a folder of its own, typed into, ended.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { createRequire } from "node:module";
import * as path from "node:path";

const TOOLS = path.resolve(import.meta.dirname, "../../.e2e");
const { chromium } = createRequire(path.join(TOOLS, "package.json"))("playwright-core");

/** The item of the status bar; its name is made of publisher, extension and item. */
export const ITEM = '.statusbar-item[id="keyturn.keyturn.keyturn"]';
const INPUT = ".quick-input-widget .quick-input-box input";

const SETTINGS = {
  "chat.disableAIFeatures": true,
  "editor.minimap.enabled": false,
  "extensions.ignoreRecommendations": true,
  "keyturn.host_idle_s": 5,
  "security.workspace.trust.enabled": false,
  "telemetry.telemetryLevel": "off",
  "window.commandCenter": false,
  "workbench.secondarySideBar.defaultVisibility": "hidden",
  "workbench.startupEditor": "none",
  "workbench.tips.enabled": false,
};

/**
 * Start the editor with the extension `vsix` and open `files` (name → text) as its folder.
 *
 * `keyturn` is the server's command. It is found where pipx would have put it: the editor takes PATH
 * from a login shell, whatever it was started with. What it is sent is kept where `isRecording`.
 */
export async function startWorkbench({ vsix, keyturn, files, artefacts, ...more }) {
  const { settings = {}, flags = [], isRecording = false } = more;
  // Short: the engine host's socket lies in it, and names of sockets are limited.
  const home = await mkdtemp("/tmp/ktv");
  const folder = path.join(home, "project");
  const runtime = path.join(home, "run");
  const user = path.join(home, "user");
  await mkdir(path.join(user, "User"), { recursive: true });
  await mkdir(runtime, { mode: 0o700 });
  await mkdir(folder);
  const all = { ...SETTINGS, ...settings };
  await writeFile(path.join(user, "User", "settings.json"), JSON.stringify(all));
  const bin = path.join(home, ".local/bin");
  await mkdir(bin, { recursive: true });
  const found = path.join(bin, "keyturn");
  const record = `#!/bin/sh\n[ "$1" = serve ] || exec ${keyturn} "$@"\ntee ${home}/sent | ${keyturn} serve\n`;
  if (isRecording) await writeFile(found, record, { mode: 0o755 });
  else if (keyturn !== undefined) await symlink(keyturn, found);
  await writeFile(path.join(home, ".profile"), `PATH="${bin}:$PATH"\n`);
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(folder, name)), { recursive: true });
    await writeFile(path.join(folder, name), text);
  }

  const env = { ...process.env, HOME: home, XDG_CONFIG_HOME: home, XDG_RUNTIME_DIR: runtime };
  const entry = path.join(TOOLS, "node_modules/code-server/out/node/entry.js");
  const places = ["--user-data-dir", user, "--extensions-dir", path.join(home, "extensions")];
  execFileSync(process.execPath, [entry, ...places, "--install-extension", vsix], { env, stdio: "inherit" });
  const port = await freePort();
  const quiet = ["--auth", "none", "--disable-telemetry", "--disable-update-check"];
  const bind = ["--bind-addr", `127.0.0.1:${port}`];
  const server = spawn(process.execPath, [entry, ...bind, ...quiet, ...places, ...flags], {
    env,
    detached: true,
    stdio: "ignore",
  });
  const browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: ["--no-sandbox"],
  });
  const page = await browser.newPage({ viewport: { width: 1000, height: 560 } });
  await eventually("code-server answers", () =>
    page.goto(`http://127.0.0.1:${port}/?folder=${folder}`).then(() => true, () => false),
  );
  await page.waitForSelector(".monaco-workbench", { timeout: 120_000 });
  return new Workbench({ page, browser, server, home, folder, runtime, artefacts });
}

class Workbench {
  #parts;
  #numShots = 0;

  constructor(parts) {
    this.#parts = parts;
    this.page = parts.page;
    this.runtime = parts.runtime;
  }

  eventually(what, test) {
    return eventually(what, test);
  }

  async open(name) {
    await this.pick("Control+P", name);
    await this.page.waitForSelector(`.tab.active[data-resource-name="${name}"]`);
    await this.page.click(".monaco-editor .view-lines");
  }

  /** Run a command by its title. */
  command(title) {
    return this.pick("F1", title);
  }

  async pick(key, text) {
    await this.page.keyboard.press(key);
    await this.page.waitForSelector(INPUT);
    await this.choose(text);
  }

  /** Choose what is called `text` in the list that is open. */
  async choose(text) {
    await this.page.keyboard.type(text);
    await this.page.waitForSelector(`.quick-input-list .monaco-list-row.focused:has-text("${text}")`);
    await this.page.keyboard.press("Enter");
    await this.page.waitForSelector(INPUT, { state: "hidden" });
  }

  async type(text) {
    for (const char of text) {
      await this.page.keyboard.type(char);
      await this.page.waitForTimeout(120);
    }
  }

  press(key) {
    return this.page.keyboard.press(key);
  }

  /** Put the cursor behind a column (from 0) of a line (from 1). */
  async goTo(line, column) {
    await this.page.keyboard.press("Control+G");
    await this.page.waitForSelector(INPUT);
    await this.page.keyboard.type(`${line}:${column + 1}`);
    await this.page.keyboard.press("Enter");
    await this.page.waitForSelector(INPUT, { state: "hidden" });
  }

  /** The grey text, "" while there is none. */
  async ghost() {
    const parts = await this.page.$$eval(
      ".monaco-editor [class*=ghost-text-decoration], .monaco-editor .suggest-preview-text",
      (found) => found.map((one) => one.textContent),
    );
    return parts.join("").replace(/\u00a0/g, " ");
  }

  untilGhost(test = (text) => text !== "") {
    return eventually("ghost text", async () => {
      const text = await this.ghost();
      return test(text) ? text : undefined;
    });
  }

  /** Wait until a line of the editor reads `text`, but for its indentation and what is grey. */
  untilText(text) {
    return this.eventually(text, async () => {
      const lines = await this.page.$$eval(".monaco-editor .view-line", (found) =>
        found.map((line) => {
          const copy = line.cloneNode(true);
          for (const grey of copy.querySelectorAll("[class*=ghost-text]")) grey.remove();
          return copy.textContent;
        }),
      );
      return lines.some((line) => line.replace(/\u00a0/g, " ").trim() === text.trim());
    });
  }

  /** What the status bar says of Keyturn: its text, and what stands under the pointer. */
  async status() {
    const item = await this.page.$(ITEM);
    if (item === null) return { text: "", help: "" };
    return {
      text: ((await item.textContent()) ?? "").trim(),
      help: (await item.getAttribute("aria-label")) ?? "",
    };
  }

  untilStatus(test, timeout) {
    let last;
    const look = async () => {
      last = await this.status();
      return test(last) ? last : undefined;
    };
    return eventually("a state in the status bar", look, timeout).catch((error) => {
      throw new Error(`${error.message}; last seen: ${JSON.stringify(last)}`);
    });
  }

  /** The messages that the server was sent, where they are recorded. */
  async sent() {
    const data = await readFile(path.join(this.#parts.home, "sent")).catch(() => Buffer.of());
    const messages = [];
    for (let at = 0; ; ) {
      const start = data.indexOf("\r\n\r\n", at) + 4;
      const length = Number(/Content-Length: (\d+)/.exec(data.toString("latin1", at, start))?.[1]);
      if (start < 4 || !(start + length <= data.length)) return messages;
      messages.push(JSON.parse(data.toString("utf8", start, start + length)));
      at = start + length;
    }
  }

  untilSent(test) {
    return eventually("a message", async () => (await this.sent()).find(test), 30_000);
  }

  /** Save, and wait for the file to have `text`: the editor writes in its own time. */
  async saved(name, text) {
    const file = path.join(this.#parts.folder, name);
    await this.press("Control+S");
    const has = async () => (await readFile(file, "utf8")) === text;
    await eventually("the file", has, 15_000).catch(() => {});
    assert.equal(await readFile(file, "utf8"), text);
  }

  /** Keep a picture, under a number that says when. */
  async shot(name) {
    this.#numShots += 1;
    const number = String(this.#numShots).padStart(2, "0");
    await this.page.screenshot({ path: path.join(this.#parts.artefacts, `${number}-${name}.png`) });
  }

  /** End the editor, its servers, and what it wrote. */
  async close() {
    const { browser, server, home } = this.#parts;
    await browser.close();
    try {
      process.kill(-server.pid, "SIGTERM");
    } catch {}
    await new Promise((resolve) => setTimeout(resolve, 1000));
    await rm(home, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** Wait until `test` gives something true, and return that. */
export async function eventually(what, test, timeout = 120_000) {
  const deadline = Date.now() + timeout;
  for (;;) {
    const found = await test();
    if (found) return found;
    if (Date.now() > deadline) throw new Error(`waited in vain for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function freePort() {
  return new Promise((resolve) => {
    const socket = createServer().listen(0, "127.0.0.1", () => {
      const { port } = socket.address();
      socket.close(() => resolve(port));
    });
  });
}
