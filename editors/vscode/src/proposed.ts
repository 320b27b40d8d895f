/**
 * What the proposed API `inlineCompletionsAdditions` adds: what was shown, and what was accepted in
 * part. Only an editor started with `--enable-proposed-api keyturn.keyturn`, and an extension built
 * with `make vsix PROPOSED=1`, have it; with any other everything works without.
 */

import * as vscode from "vscode";
import type { LanguageClient } from "vscode-languageclient/node";

/** The part of vscode-languageclient's feature that makes its provider; it is protected there. */
interface Feature {
  registerLanguageProvider(options: { documentSelector: unknown }): [vscode.Disposable, Provider];
}

type Provider = vscode.InlineCompletionItemProvider;

interface Events {
  handleDidShowCompletionItem(item: vscode.InlineCompletionItem): void;
  handleDidPartiallyAcceptCompletionItem(
    item: vscode.InlineCompletionItem,
    accepted: number | { acceptedLength: number },
  ): void;
}

/** Make the client's provider one that reports events, where the editor allows it. */
export function registerWithEvents(found: unknown, client: LanguageClient): void {
  const feature = found as Feature;
  const register = feature.registerLanguageProvider.bind(feature);
  const tell = (method: string, item: vscode.InlineCompletionItem, more?: object) =>
    void client.sendNotification(method, { item: asItem(client, item), ...more });
  const events: Events = {
    handleDidShowCompletionItem: (item) => tell("textDocument/didShowCompletion", item),
    handleDidPartiallyAcceptCompletionItem: (item, accepted) => {
      const acceptedLength = typeof accepted === "number" ? accepted : accepted.acceptedLength;
      tell("textDocument/didPartiallyAcceptCompletion", item, { acceptedLength });
    },
  };
  feature.registerLanguageProvider = (options) => {
    const [registration, provider] = register(options);
    const selector = client.protocol2CodeConverter.asDocumentSelector(
      options.documentSelector as Parameters<
        typeof client.protocol2CodeConverter.asDocumentSelector
      >[0],
    );
    try {
      // Refused, with an exception, where the proposal is not switched on.
      const reporting = vscode.languages.registerInlineCompletionItemProvider(selector, {
        ...provider,
        ...events,
      });
      registration.dispose();
      return [reporting, provider];
    } catch {
      return [registration, provider];
    }
  };
}

function asItem(client: LanguageClient, { insertText, range, command }: vscode.InlineCompletionItem) {
  return {
    insertText: typeof insertText === "string" ? insertText : insertText.value,
    range: range && client.code2ProtocolConverter.asRange(range),
    command: command && client.code2ProtocolConverter.asCommand(command),
  };
}
