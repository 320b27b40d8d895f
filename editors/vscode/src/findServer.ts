/** Where the server's command is; no editor here. */

import { constants } from "node:fs";
import { access, stat } from "node:fs/promises";
import * as path from "node:path";

export interface Command {
  path: string;
  args: string[];
  /** Where it was found, for the log. */
  from: "setting" | "PATH" | "private";
}

export interface Places {
  /** The settings `keyturn.server.path` and `keyturn.server.args`; empty where nothing is set. */
  setting: string;
  args: string[];
  /** The environment's PATH. */
  searchPath: string;
  /** The command of the private environment, whether it exists or not. */
  privateCommand: string;
  platform: NodeJS.Platform;
}

/**
 * Return the command to start, undefined where there is none.
 *
 * @throws Error the setting names a file that cannot be run; nothing else is tried then.
 */
export async function findServer(places: Places): Promise<Command | undefined> {
  const { setting, args } = places;
  if (setting !== "") {
    if (!path.isAbsolute(setting))
      throw new Error(`keyturn.server.path "${setting}" is not an absolute path`);
    if (!(await isProgram(setting)))
      throw new Error(`keyturn.server.path "${setting}" is no file that can be run`);
    return { path: setting, args, from: "setting" };
  }
  const onPath = await which("keyturn", places);
  if (onPath !== undefined) return { path: onPath, args, from: "PATH" };
  const { privateCommand } = places;
  if (await isProgram(privateCommand)) return { path: privateCommand, args, from: "private" };
  return undefined;
}

/** Return the absolute path of a program. A relative entry of PATH would let a workspace choose. */
export async function which(
  name: string,
  { searchPath, platform }: Pick<Places, "searchPath" | "platform">,
): Promise<string | undefined> {
  const isWindows = platform === "win32";
  const file = isWindows ? `${name}.exe` : name;
  for (const folder of searchPath.split(isWindows ? ";" : ":")) {
    if (path.isAbsolute(folder) && (await isProgram(path.join(folder, file))))
      return path.join(folder, file);
  }
  return undefined;
}

async function isProgram(file: string): Promise<boolean> {
  try {
    await access(file, constants.X_OK);
    return (await stat(file)).isFile();
  } catch {
    return false;
  }
}
