/** The language client: vscode-languageclient, and the notifications of ours that it lacks. */

import * as os from "node:os";
import * as vscode from "vscode";
import {
  LanguageClient,
  RevealOutputChannelOn,
  type StaticFeature,
} from "vscode-languageclient/node";
import { CursorMoves } from "./cursorMoves";
import type { Command } from "./findServer";
import { registerWithEvents } from "./proposed";
import { changed, inTrust } from "./settings";

/** Text that people write. Not output, and not what source control shows of former versions. */
const SELECTOR = ["file", "untitled", "vscode-notebook-cell", "vscode-remote"].map((scheme) => ({
  scheme,
}));

const INLINE = "textDocument/inlineCompletion";

/** Says that `keyturn/refresh` is understood. */
const ASKS_FOR_REFRESH: StaticFeature = {
  fillClientCapabilities(capabilities) {
    capabilities.experimental = { ...capabilities.experimental, keyturn: { refresh: true } };
  },
  initialize() {},
  getState: () => ({ kind: "static" }),
  clear() {},
};

/** Return a client that is not started yet; `names` are the server's settings. */
export function languageClient(
  command: Command,
  names: string[],
  log: vscode.LogOutputChannel,
): LanguageClient {
  const wasTrusted = vscode.workspace.isTrusted;
  const settingsFor = (uri?: string) => {
    const resource = uri === undefined ? undefined : vscode.Uri.parse(uri);
    const configuration = vscode.workspace.getConfiguration("keyturn", resource);
    return inTrust(changed(configuration, names), configuration, {
      wasTrusted,
      isTrusted: vscode.workspace.isTrusted,
    });
  };
  // Of the settings only these are needed before the server can ask; what it then hears of all of
  // them replaces those from the start, so that a setting taken back is its default again.
  const { completion_items, other_files } = settingsFor();
  const client = new LanguageClient(
    "keyturn",
    "Keyturn",
    // Not in the workspace: what lies there must not be imported.
    { command: command.path, args: [...command.args, "serve"], options: { cwd: os.homedir() } },
    {
      documentSelector: SELECTOR,
      outputChannel: log,
      revealOutputChannelOn: RevealOutputChannelOn.Never,
      initializationOptions: {
        ...(completion_items === undefined ? {} : { completion_items }),
        ...(wasTrusted ? {} : { other_files }),
      },
      initializationFailedHandler: () => false,
      middleware: {
        workspace: {
          configuration: (params, token, next) =>
            params.items.every((item) => item.section === "keyturn")
              ? params.items.map((item) => settingsFor(item.scopeUri))
              : next(params, token),
          // Says only that something changed: the server asks, and hears of the changed ones.
          didChangeConfiguration: (_, next) => next(undefined),
        },
      },
    },
  );
  client.registerFeature(ASKS_FOR_REFRESH);
  registerWithEvents(client.getFeature(INLINE), client);
  return client;
}

/** Tell the server what the user looks at, and ask again when it says so. */
export function follow(client: LanguageClient): vscode.Disposable {
  const moves = new CursorMoves();
  const isOurs = (document: vscode.TextDocument) => vscode.languages.match(SELECTOR, document) > 0;
  const tell = (method: string, document: vscode.TextDocument, position?: vscode.Position) => {
    if (!client.isRunning() || !isOurs(document)) return;
    const at = position && { position: { line: position.line, character: position.character } };
    void client.sendNotification(method, { textDocument: { uri: uriOf(client, document) }, ...at });
  };
  return vscode.Disposable.from(
    vscode.workspace.onDidGrantWorkspaceTrust(() => {
      if (client.isRunning())
        void client.sendNotification("workspace/didChangeConfiguration", { settings: null });
    }),
    vscode.window.onDidChangeActiveTextEditor((editor) => {
      if (editor !== undefined) tell("textDocument/didFocus", editor.document);
    }),
    vscode.window.onDidChangeTextEditorSelection(({ textEditor, selections }) => {
      const { document } = textEditor;
      const isMove = moves.isMove(document.uri.toString(), document.version);
      if (isMove && textEditor === vscode.window.activeTextEditor && selections.length === 1)
        tell("keyturn/cursor", document, selections[0]?.active);
    }),
    vscode.workspace.onDidCloseTextDocument(({ uri }) => moves.closed(uri.toString())),
    client.onNotification("keyturn/refresh", (place: Place) => {
      const editor = vscode.window.activeTextEditor;
      if (editor === undefined || uriOf(client, editor.document) !== place.textDocument.uri) return;
      const { line, character } = place.position;
      const { selection } = editor;
      if (selection.isEmpty && selection.active.isEqual(new vscode.Position(line, character)))
        // As if the user had asked: with `explicit: false` an editor that has asked here before
        // does not ask again.
        void vscode.commands.executeCommand("editor.action.inlineSuggest.trigger");
    }),
  );
}

interface Place {
  textDocument: { uri: string };
  position: { line: number; character: number };
}

/** Return what the server calls a document. */
export function uriOf(client: LanguageClient, document: vscode.TextDocument): string {
  return client.code2ProtocolConverter.asUri(document.uri);
}

