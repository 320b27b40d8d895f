/** What VS Code calls. */

import * as vscode from "vscode";
import { register } from "./commands";
import { Server } from "./server";
import { StatusBar } from "./statusBar";

let server: Server | undefined;

export function activate(context: vscode.ExtensionContext): void {
  const log = vscode.window.createOutputChannel("Keyturn", { log: true });
  const statusBar = new StatusBar();
  const started = new Server(context, log, statusBar);
  server = started;
  context.subscriptions.push(
    log,
    statusBar,
    vscode.workspace.onDidChangeConfiguration((change) => {
      if (change.affectsConfiguration("keyturn.server")) void started.start();
    }),
  );
  register(context, started, log);
  void started.start();
}

export function deactivate(): Promise<void> | undefined {
  return server?.stop();
}
