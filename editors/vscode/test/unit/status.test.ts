import assert from "node:assert/strict";
import { test } from "node:test";
import { shown, summaryOf } from "../../src/status";

test("a state that one waits in shows its text", () => {
  const found = shown({ state: "loading", text: "loading 43 %", help: "Type on." });
  assert.equal(found.text, "$(loading~spin) Keyturn: loading 43 %");
  assert.equal(found.tooltip, "Keyturn: loading 43 %\n\nType on.");
  assert.equal(found.isError, false);
});

test("a reason for no suggestion is in the tooltip and does not move the bar", () => {
  const text = "no suggestion: the cursor is inside a word";
  const found = shown({ state: "ready", text, help: "" });
  assert.equal(found.text, "$(check) Keyturn");
  assert.equal(found.tooltip, `Keyturn: ${text}`);
});

test("a failure is an error, with its remedy", () => {
  const found = shown({ state: "failed", text: "out of memory", help: "Use a smaller model." });
  assert.ok(found.isError);
  assert.match(found.tooltip, /smaller model/);
});

test("a state that is not known is shown all the same", () => {
  assert.equal(shown({ state: "resting", text: "", help: "" }).text, "$(question) Keyturn: resting");
});

test("a long text and one of several lines stay one short line", () => {
  const { text } = shown({ state: "failed", text: `no\n\nmodel ${"x".repeat(200)}`, help: "" });
  assert.ok(text.length < 90 && text.startsWith("$(error) Keyturn: no model x") && text.endsWith("…"));
});

test("a summary is read from the status, whatever else is there or missing", () => {
  const summary = { state: "paused", text: "paused", help: "Resume." };
  assert.deepEqual(summaryOf({ state: "ready", summary }), summary);
  assert.deepEqual(summaryOf({ summary: { state: "ready" } }), { state: "ready", text: "", help: "" });
  for (const none of [undefined, null, {}, { summary: null }, { summary: 3 }])
    assert.equal(summaryOf(none).state, "ready");
});
