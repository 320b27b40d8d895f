/** What the status bar shows of a state; no editor here. */

/** `keyturn/status`'s `summary`: `text` is a line, `help` a sentence that says what to do. */
export interface Summary {
  state: string;
  text: string;
  help: string;
}

/** What an item of the status bar is made of. */
export interface Shown {
  text: string;
  tooltip: string;
  isError: boolean;
}

const ICONS: Record<string, string> = {
  starting: "loading~spin",
  loading: "loading~spin",
  ready: "check",
  completing: "ellipsis",
  healing: "check",
  paused: "debug-pause",
  failed: "error",
};

// In these there is nothing to wait for: their text would only move the items beside it.
const QUIET = new Set(["ready", "completing", "healing"]);

/** Return the summary in what the server sent; of a server that sends none, that it runs. */
export function summaryOf(status: unknown): Summary {
  const summary = (status as { summary?: Partial<Summary> } | null | undefined)?.summary;
  if (typeof summary?.state !== "string") return { state: "ready", text: "ready", help: "" };
  return { state: summary.state, text: summary.text ?? "", help: summary.help ?? "" };
}

/** Return what is shown; a state that is not known is shown with its text. */
export function shown(summary: Summary): Shown {
  const icon = ICONS[summary.state] ?? "question";
  const text = oneLine(summary.text) || summary.state;
  return {
    text: QUIET.has(summary.state) ? `$(${icon}) Keyturn` : `$(${icon}) Keyturn: ${text}`,
    tooltip: [`Keyturn: ${text}`, summary.help].filter((line) => line !== "").join("\n\n"),
    isError: summary.state === "failed",
  };
}

function oneLine(text: string): string {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
