/** The server's life in this window: found, started, set up, followed, stopped. */

import * as path from "node:path";
import * as vscode from "vscode";
import { type LanguageClient, State } from "vscode-languageclient/node";
import { follow, languageClient, uriOf } from "./client";
import { type Command, findServer } from "./findServer";
import { carried, commandIn, isOutdated } from "./privateServer";
import { serverSettings } from "./settings";
import { summaryOf } from "./status";
import type { StatusBar } from "./statusBar";

export class Server {
  /** The environment that the extension makes where there is no other server. */
  readonly privateFolder: string;
  command: Command | undefined;
  private client: LanguageClient | undefined;
  private following: vscode.Disposable | undefined;
  private readonly paused = new Set<string | undefined>();
  private turn: Promise<void> = Promise.resolve();

  constructor(
    private readonly context: vscode.ExtensionContext,
    private readonly log: vscode.LogOutputChannel,
    private readonly statusBar: StatusBar,
  ) {
    this.privateFolder = path.join(context.globalStorageUri.fsPath, "server");
  }

  /** Start; a server that runs is stopped first. Starts and stops never overlap. */
  start(): Promise<void> {
    return this.next(async () => {
      await this.end();
      try {
        await this.begin();
      } catch (error) {
        this.fail(message(error), "Show the log, or choose “Doctor”, to see what is wrong.");
      }
    });
  }

  stop(): Promise<void> {
    return this.next(() => this.end());
  }

  showSettingUp(): void {
    this.statusBar.show({ state: "starting", text: "setting up the server", help: "" });
  }

  /** End the engine host and start another; the whole server where it does not run. */
  async restart(): Promise<void> {
    if (this.client?.isRunning()) await this.client.sendRequest("keyturn/restart");
    else await this.start();
  }

  /** Pause or resume suggestions in a document, or everywhere. */
  pause(paused: boolean, document?: vscode.TextDocument): void {
    if (this.client === undefined) return;
    const uri = document && uriOf(this.client, document);
    if (paused) this.paused.add(uri);
    else this.paused.delete(uri);
    this.sendPause(paused, uri);
  }

  /** Resume everywhere, and in every document. */
  resume(): void {
    for (const uri of this.paused) this.sendPause(false, uri);
    this.paused.clear();
  }

  private sendPause(paused: boolean, uri: string | undefined): void {
    const where = uri === undefined ? {} : { textDocument: { uri } };
    if (this.client?.isRunning())
      void this.client.sendNotification("keyturn/pause", { ...where, paused });
  }

  private next(step: () => Promise<void>): Promise<void> {
    this.turn = this.turn.then(step, step);
    return this.turn;
  }

  private async begin(): Promise<void> {
    this.statusBar.show({ state: "starting", text: "starting", help: "" });
    const settings = vscode.workspace.getConfiguration("keyturn.server");
    this.command = await findServer({
      setting: settings.get<string>("path", ""),
      args: settings.get<string[]>("args", []),
      searchPath: process.env["PATH"] ?? "",
      privateCommand: commandIn(this.privateFolder, process.platform),
      platform: process.platform,
    });
    if (this.command === undefined) {
      this.fail("no server", "Click to set it up, or to say where it is.");
      void this.offerSetUp();
      return;
    }
    this.log.info(`server ${this.command.path}, found by: ${this.command.from}`);
    const client = languageClient(
      this.command,
      serverSettings(this.context.extension.packageJSON),
      this.log,
    );
    this.client = client;
    this.following = vscode.Disposable.from(
      follow(client),
      client.onNotification("keyturn/status", (status: unknown) => this.take(client, status)),
      client.onDidChangeState(({ newState }) => this.onState(client, newState)),
    );
    if (this.command.from === "private") void this.offerUpdate();
    await client.start();
  }

  private async end(): Promise<void> {
    const { client } = this;
    this.client = undefined;
    this.following?.dispose();
    this.following = undefined;
    // One that failed to start cannot be stopped, only dropped.
    if (client?.needsStop()) await client.stop().catch((error) => this.log.warn(message(error)));
  }

  private onState(client: LanguageClient, state: State): void {
    if (client !== this.client) return;
    if (state === State.Starting) {
      this.statusBar.show({ state: "starting", text: "starting", help: "" });
    } else if (state === State.Running) {
      for (const uri of this.paused) this.sendPause(true, uri);
      client.sendRequest("keyturn/status").then(
        (status) => this.take(client, status),
        (error) => this.log.warn(`keyturn/status: ${message(error)}`),
      );
    } else if (state === State.Stopped) {
      this.fail("the server has stopped", "Choose “Restart Engine” to start it again.");
    }
  }

  private take(client: LanguageClient, status: unknown): void {
    if (client === this.client) this.statusBar.show(summaryOf(status));
  }

  private fail(text: string, help: string): void {
    this.log.error(text);
    this.statusBar.show({ state: "failed", text, help });
  }

  private async offerSetUp(): Promise<void> {
    const isCarried = (await carried(this.context.asAbsolutePath("server"))) !== undefined;
    const [setUp, choose] = ["Set Up…", "Choose Path…"];
    const text = isCarried
      ? "Keyturn needs its server, and found none on PATH."
      : "Keyturn found no server on PATH, and this build of the extension carries none: install " +
        "Keyturn, then start VS Code from a shell that finds it, or say where it is.";
    const answer = await vscode.window.showInformationMessage(
      text,
      ...(isCarried ? [setUp] : []),
      choose,
    );
    if (answer === setUp) await vscode.commands.executeCommand("keyturn.setUp");
    if (answer === choose)
      await vscode.commands.executeCommand("workbench.action.openSettings", "keyturn.server.path");
  }

  private async offerUpdate(): Promise<void> {
    const inside = await carried(this.context.asAbsolutePath("server"));
    if (inside === undefined || !(await isOutdated(this.privateFolder, inside))) return;
    const text = "The Keyturn server is older than the extension.";
    if ((await vscode.window.showInformationMessage(text, "Update")) === "Update")
      await vscode.commands.executeCommand("keyturn.setUp");
  }
}

/** Return what an error says. */
export function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
