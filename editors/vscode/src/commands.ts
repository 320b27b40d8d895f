/** The commands, one function each; `package.json` gives them their titles. */

import { execFile } from "node:child_process";
import { rm } from "node:fs/promises";
import * as os from "node:os";
import { promisify } from "node:util";
import * as vscode from "vscode";
import { carried, setUp } from "./privateServer";
import { message, type Server } from "./server";

/** Commands of the editor's own under names that a search for “Keyturn” finds. */
const ALIASES = {
  "keyturn.suggest": "editor.action.inlineSuggest.trigger",
  "keyturn.nextCandidate": "editor.action.inlineSuggest.showNext",
  "keyturn.previousCandidate": "editor.action.inlineSuggest.showPrevious",
  "keyturn.acceptWord": "editor.action.inlineSuggest.acceptNextWord",
  "keyturn.acceptLine": "editor.action.inlineSuggest.acceptNextLine",
};

/** Register them all. */
export function register(
  context: vscode.ExtensionContext,
  server: Server,
  log: vscode.LogOutputChannel,
): void {
  const commands: Record<string, () => unknown> = {
    "keyturn.pauseHere": () => pauseHere(server),
    "keyturn.pause": () => server.pause(true),
    "keyturn.resume": () => server.resume(),
    "keyturn.restart": () => server.restart(),
    "keyturn.showLog": () => log.show(),
    "keyturn.doctor": () => doctor(server),
    "keyturn.chooseModel": () => chooseModel(server),
    "keyturn.setUp": () => setUpServer(context, server, log),
    "keyturn.remove": () => removeServer(server),
    "keyturn.menu": () => menu(context),
  };
  for (const [name, target] of Object.entries(ALIASES))
    commands[name] = () => vscode.commands.executeCommand(target);
  for (const [name, run] of Object.entries(commands))
    context.subscriptions.push(
      vscode.commands.registerCommand(name, async () => {
        try {
          await run();
        } catch (error) {
          log.error(`${name}: ${message(error)}`);
          void vscode.window.showErrorMessage(`Keyturn: ${message(error)}`);
        }
      }),
    );
}

function pauseHere(server: Server): void {
  const document = vscode.window.activeTextEditor?.document;
  if (document !== undefined) server.pause(true, document);
}

function doctor(server: Server): void {
  const { path, args } = running(server);
  const terminal = vscode.window.createTerminal({
    name: "Keyturn Doctor",
    shellPath: path,
    shellArgs: [...args, "doctor"],
    cwd: os.homedir(),
    isTransient: true,
  });
  terminal.show();
}

async function chooseModel(server: Server): Promise<void> {
  const { path, args } = running(server);
  const { stdout } = await promisify(execFile)(path, [...args, "models", "--json"], {
    cwd: os.homedir(),
  });
  const { on_disk } = JSON.parse(stdout) as { on_disk: Model[] };
  const known = on_disk.map(({ name, path: where, num_bytes }) => ({
    label: name,
    description: `${Math.round(num_bytes / 1e6)} MB`,
    detail: where,
  }));
  const file = { label: "$(file) A .gguf file…", description: "" };
  const folder = { label: "$(folder) A folder of safetensors…", description: "" };
  const chosen = await vscode.window.showQuickPick([...known, file, folder], {
    title: "The model that completes",
    matchOnDetail: true,
  });
  if (chosen === undefined) return;
  let model = chosen.label;
  if (chosen === file || chosen === folder) {
    const opened = await vscode.window.showOpenDialog({
      canSelectFiles: chosen === file,
      canSelectFolders: chosen === folder,
      ...(chosen === file ? { filters: { "GGUF models": ["gguf"] } } : {}),
    });
    if (opened?.[0] === undefined) return;
    model = opened[0].fsPath;
  }
  const settings = vscode.workspace.getConfiguration("keyturn");
  await settings.update("model", model, vscode.ConfigurationTarget.Global);
}

interface Model {
  name: string;
  path: string;
  num_bytes: number;
}

async function setUpServer(
  context: vscode.ExtensionContext,
  server: Server,
  log: vscode.LogOutputChannel,
): Promise<void> {
  const inside = await carried(context.asAbsolutePath("server"));
  if (inside === undefined)
    throw new Error(
      "no wheel of the server was built into this extension; install Keyturn by itself, and set " +
        "keyturn.server.path where it is not on PATH",
    );
  const agreed = await vscode.window.showInformationMessage(
    "Set up Keyturn's server?",
    {
      modal: true,
      detail:
        "A Python environment of its own is made in the extension's storage, about a gigabyte. " +
        "PyTorch (on Linux from its own index of CPU builds) and what else the server needs come " +
        "from your Python package index, each fixed by its hash; the server itself is part of the " +
        "extension.",
    },
    "Set Up",
  );
  if (agreed !== "Set Up") return;
  await server.stop();
  server.showSettingUp();
  const options = {
    location: vscode.ProgressLocation.Notification,
    title: "Keyturn",
    cancellable: true,
  };
  const error = await vscode.window.withProgress(options, async (progress, token) => {
    const abort = new AbortController();
    token.onCancellationRequested(() => abort.abort());
    const tell = (step: string) => progress.report({ message: step });
    const onLine = (line: string) => log.info(line);
    return setUp(server.privateFolder, inside, tell, onLine, abort.signal).catch((e) => e);
  });
  await server.start();
  if (error !== undefined && error.name !== "AbortError") throw error;
}

async function removeServer(server: Server): Promise<void> {
  const agreed = await vscode.window.showWarningMessage(
    "Remove the server that the extension has set up?",
    { modal: true, detail: server.privateFolder },
    "Remove",
  );
  if (agreed !== "Remove") return;
  await server.stop();
  await rm(server.privateFolder, { recursive: true, force: true });
  await server.start();
}

/** What a click on the status bar offers: the commands, by their titles in the manifest. */
async function menu(context: vscode.ExtensionContext): Promise<void> {
  const { commands } = context.extension.packageJSON.contributes as { commands: Title[] };
  const items = commands
    .filter(({ command }) => command !== "keyturn.menu" && !(command in ALIASES))
    .map(({ command, title }) => ({ label: title, command }));
  const settings = { label: "Settings…", command: "workbench.action.openSettings" };
  const chosen = await vscode.window.showQuickPick([...items, settings], { title: "Keyturn" });
  if (chosen === settings) await vscode.commands.executeCommand(settings.command, "keyturn");
  else if (chosen !== undefined) await vscode.commands.executeCommand(chosen.command);
}

interface Title {
  command: string;
  title: string;
}

function running(server: Server): { path: string; args: string[] } {
  if (server.command === undefined)
    throw new Error("there is no server yet: choose “Set Up or Update the Server…”");
  return server.command;
}
