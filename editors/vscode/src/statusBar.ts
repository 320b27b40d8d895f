/** The item of the status bar. */

import * as vscode from "vscode";
import { shown, type Summary } from "./status";

export class StatusBar {
  private readonly item: vscode.StatusBarItem;

  constructor() {
    this.item = vscode.window.createStatusBarItem("keyturn", vscode.StatusBarAlignment.Right, 100);
    this.item.name = "Keyturn";
    this.item.command = "keyturn.menu";
    this.show({ state: "starting", text: "starting", help: "" });
    this.item.show();
  }

  show(summary: Summary): void {
    const { text, tooltip, isError } = shown(summary);
    this.item.text = text;
    this.item.tooltip = new vscode.MarkdownString().appendText(tooltip);
    this.item.accessibilityInformation = { label: tooltip };
    this.item.backgroundColor = isError
      ? new vscode.ThemeColor("statusBarItem.errorBackground")
      : undefined;
  }

  dispose(): void {
    this.item.dispose();
  }
}
