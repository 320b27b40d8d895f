import assert from "node:assert/strict";
import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { findServer } from "../../src/findServer";

let folder: string;

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "kt"));
});
afterEach(() => rm(folder, { recursive: true }));

async function program(...parts: string[]): Promise<string> {
  const file = path.join(folder, ...parts);
  await mkdir(path.dirname(file), { recursive: true });
  await writeFile(file, "#!/bin/sh\n");
  await chmod(file, 0o755);
  return file;
}

function places(given: object = {}) {
  const platform: NodeJS.Platform = "linux";
  const privateCommand = path.join(folder, "private/bin/keyturn");
  return { setting: "", args: [], searchPath: "", privateCommand, platform, ...given };
}

test("the setting comes first, with its arguments", async () => {
  const setting = await program("mine", "server");
  const searchPath = path.dirname(await program("bin", "keyturn"));
  const found = await findServer(places({ setting, args: ["-x"], searchPath }));
  assert.deepEqual(found, { path: setting, args: ["-x"], from: "setting" });
});

test("a setting that is no program is an error that names it, and nothing else is tried", async () => {
  const searchPath = path.dirname(await program("bin", "keyturn"));
  for (const setting of [path.join(folder, "missing"), folder, "keyturn"])
    await assert.rejects(findServer(places({ setting, searchPath })), (error: Error) =>
      error.message.includes(`"${setting}"`),
    );
});

test("PATH comes before the private one", async () => {
  await program("private", "bin", "keyturn");
  const onPath = await program("bin", "keyturn");
  const searchPath = `${folder}/none:${path.dirname(onPath)}`;
  assert.equal((await findServer(places({ searchPath })))?.path, onPath);
  assert.equal((await findServer(places()))?.from, "private");
});

test("a relative entry of PATH, which a workspace could fill, is passed over", async () => {
  const onPath = await program("bin", "keyturn");
  const searchPath = `.::${path.relative(process.cwd(), path.dirname(onPath))}`;
  assert.equal(await findServer(places({ searchPath })), undefined);
});

test("a file that cannot be run, or a folder of that name, is no server", async () => {
  const file = await program("bin", "keyturn");
  await chmod(file, 0o644);
  await mkdir(path.join(folder, "other", "keyturn"), { recursive: true });
  const searchPath = `${path.dirname(file)}:${folder}/other`;
  assert.equal(await findServer(places({ searchPath })), undefined);
});
