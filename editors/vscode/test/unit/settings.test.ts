import assert from "node:assert/strict";
import { test } from "node:test";
import manifest from "../../package.json";
import { changed, inTrust, serverSettings } from "../../src/settings";

test("the server hears of its own settings only", () => {
  const names = serverSettings(manifest);
  assert.ok(names.includes("model") && names.includes("debounce_ms"));
  assert.ok(!names.some((name) => name.startsWith("server.") || name.startsWith("trace.")));
});

test("only what is set somewhere is sent, with the value in force", () => {
  const found: Record<string, object> = {
    model: { key: "keyturn.model", defaultValue: "embedded", globalValue: "/m.gguf" },
    enabled: { defaultValue: true, workspaceValue: false },
    seed: { defaultValue: 0, defaultLanguageValue: 0, globalValue: undefined },
    languages: { defaultValue: [], workspaceFolderValue: ["go"] },
  };
  const values: Record<string, unknown> = { model: "/m.gguf", enabled: false, seed: 0, languages: ["go"] };
  const configuration = { get: (name: string) => values[name], inspect: (name: string) => found[name] };
  const names = ["model", "enabled", "seed", "languages", "unknown"];
  assert.deepEqual(changed(configuration, names), {
    model: "/m.gguf",
    enabled: false,
    languages: ["go"],
  });
});

test("no files are read in a folder that nobody trusts, until somebody does", () => {
  const configuration = { get: () => true, inspect: () => undefined };
  const told = (wasTrusted: boolean, isTrusted: boolean) =>
    inTrust({ seed: 1 }, configuration, { wasTrusted, isTrusted });
  assert.deepEqual(told(false, false), { seed: 1, other_files: false });
  assert.deepEqual(told(false, true), { seed: 1, other_files: true });
  assert.deepEqual(told(true, true), { seed: 1 });
});

test("a workspace cannot choose what runs", () => {
  const { properties } = manifest.contributes.configuration;
  const trust = manifest.capabilities.untrustedWorkspaces;
  assert.equal(trust.supported, "limited");
  for (const name of ["keyturn.server.path", "keyturn.server.args", "keyturn.model"] as const) {
    assert.equal(properties[name].scope, "machine");
    assert.ok(trust.restrictedConfigurations.includes(name));
  }
});

test("every command has a title and is contributed once", () => {
  const { commands, keybindings } = manifest.contributes;
  assert.equal(new Set(commands.map(({ command }) => command)).size, commands.length);
  assert.ok(commands.every(({ title, category }) => title !== "" && category === "Keyturn"));
  assert.ok(keybindings.every(({ when }) => when.includes("inlineSuggestionVisible")));
});
