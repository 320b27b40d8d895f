/**
 * A Python environment of the extension's own, made from the wheel that the extension carries.
 *
 * Everything in it is fixed by a hash: what the server needs in a requirements file, the server
 * itself by being part of the extension. No package is ever looked up by its name alone.
 */

import { spawn } from "node:child_process";
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import * as os from "node:os";
import * as path from "node:path";
import { which } from "./findServer";

/** What the extension carries. */
export interface Carried {
  wheel: string;
  /** Requirements files with a hash for every file: torch, and the rest. */
  torch: string;
  requirements: string;
}

/** Called with each line that a step prints. */
export type OnLine = (line: string) => void;

/** Where torch's builds without CUDA are; on Linux the one of the usual index brings gigabytes. */
const TORCH_INDEX = "https://download.pytorch.org/whl/cpu";
const PYTHONS = ["python3.11", "python3.12", "python3.13", "python3", "python"];
const MARKER = "keyturn-wheel.txt";

/** Return what `folder` of the extension holds, undefined where no wheel was built into it. */
export async function carried(folder: string): Promise<Carried | undefined> {
  const files = await readdir(folder).catch((): string[] => []);
  const wheel = files.find((name) => name.endsWith(".whl"));
  if (wheel === undefined) return undefined;
  return {
    wheel: path.join(folder, wheel),
    torch: path.join(folder, "torch.txt"),
    requirements: path.join(folder, "requirements.txt"),
  };
}

/** Return the server's command in the environment at `folder`. */
export function commandIn(folder: string, platform: NodeJS.Platform): string {
  return platform === "win32"
    ? path.join(folder, "Scripts", "keyturn.exe")
    : path.join(folder, "bin", "keyturn");
}

/** Whether the environment at `folder` was completed from another wheel than the carried one. */
export async function isOutdated(folder: string, { wheel }: Carried): Promise<boolean> {
  const made = await readFile(path.join(folder, MARKER), "utf8").catch(() => undefined);
  return made !== undefined && made !== path.basename(wheel);
}

/**
 * Make the environment at `folder`; what stood there before is replaced.
 *
 * @throws Error no Python is found, or a step fails: its last line is in the message. Nothing is
 *   left at `folder` then.
 */
export async function setUp(
  folder: string,
  { wheel, torch, requirements }: Carried,
  tell: (step: string) => void,
  onLine: OnLine,
  signal: AbortSignal,
): Promise<void> {
  const python = await findPython(process.env["PATH"] ?? "", process.platform);
  const bin = path.dirname(commandIn(folder, process.platform));
  const inside = path.join(bin, process.platform === "win32" ? "python.exe" : "python");
  const options = ["--disable-pip-version-check", "--no-input", "install", "--no-deps"];
  const install = (...more: string[]) =>
    run(inside, ["-I", "-m", "pip", ...options, "--progress-bar=off", ...more], onLine, signal);
  const locked = ["--require-hashes", "--only-binary=:all:", "-r"];
  const index = process.platform === "linux" ? ["--extra-index-url", TORCH_INDEX] : [];
  await rm(folder, { recursive: true, force: true });
  try {
    tell("making a Python environment");
    await run(python, ["-I", "-m", "venv", folder], onLine, signal);
    tell("fetching PyTorch, some hundred megabytes");
    await install(...index, ...locked, torch);
    tell("fetching what else the server needs");
    await install(...locked, requirements);
    tell("installing the server");
    await install("--no-index", wheel);
    await run(commandIn(folder, process.platform), ["--version"], onLine, signal);
    await writeFile(path.join(folder, MARKER), path.basename(wheel));
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

/** Return a Python that can run the server. */
export async function findPython(searchPath: string, platform: NodeJS.Platform): Promise<string> {
  const check = "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2])";
  for (const name of PYTHONS) {
    const python = await which(name, { searchPath, platform });
    if (python === undefined) continue;
    const works = run(python, ["-I", "-c", check], () => {}, new AbortController().signal);
    if (await works.then(() => true, () => false)) return python;
  }
  throw new Error(
    "no Python 3.11 or newer with venv is on PATH; on Debian: apt-get install python3-venv",
  );
}

function run(command: string, args: string[], onLine: OnLine, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    // Not in the workspace: what lies there must not be imported.
    const cwd = os.homedir();
    const child = spawn(command, args, { cwd, signal, stdio: ["ignore", "pipe", "pipe"] });
    let last = "";
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8").on("data", (text: string) => {
        for (const line of text.split(/\r?\n/).filter((one) => one.trim() !== "")) {
          last = line.trim();
          onLine(line);
        }
      });
    }
    child.on("error", reject);
    child.on("close", (code) => {
      if (code === 0) resolve();
      else reject(new Error(`${path.basename(command)} ended with ${code}: ${last}`));
    });
  });
}
