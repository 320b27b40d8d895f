/** Which settings the server is told: only what the user changed; its defaults are its own. */

/** The part of `WorkspaceConfiguration` that is needed. */
export interface Configuration {
  get(key: string): unknown;
  inspect(key: string): object | undefined;
}

/** What the extension alone reads, under the same section. */
const OF_THE_EXTENSION = ["server.", "trace."];

/** Return the server's settings among those that the extension's manifest declares. */
export function serverSettings(manifest: unknown): string[] {
  const { properties } = (manifest as Manifest).contributes.configuration;
  return Object.keys(properties)
    .map((name) => name.slice("keyturn.".length))
    .filter((name) => !OF_THE_EXTENSION.some((own) => name.startsWith(own)));
}

interface Manifest {
  contributes: { configuration: { properties: Record<string, unknown> } };
}

/** Return those settings that have a value somewhere, as the editor combines them. */
export function changed(configuration: Configuration, names: string[]): Record<string, unknown> {
  const isSet = (name: string) =>
    Object.entries(configuration.inspect(name) ?? {}).some(
      ([level, value]) => /^(?!default).*Value$/.test(level) && value !== undefined,
    );
  return Object.fromEntries(
    names.filter(isSet).map((name) => [name, configuration.get(name)]),
  );
}

/**
 * Return settings of which none has files read in a folder that nobody trusts: `other_files` is off
 * there. What the server was told at its start stays, so it is said again once trust is granted.
 */
export function inTrust(
  settings: Record<string, unknown>,
  configuration: Configuration,
  { wasTrusted, isTrusted }: { wasTrusted: boolean; isTrusted: boolean },
): Record<string, unknown> {
  if (!isTrusted) return { ...settings, other_files: false };
  return wasTrusted ? settings : { ...settings, other_files: configuration.get("other_files") };
}
