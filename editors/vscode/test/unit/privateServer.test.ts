import assert from "node:assert/strict";
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import * as os from "node:os";
import * as path from "node:path";
import { afterEach, beforeEach, test } from "node:test";
import { carried, findPython, isOutdated, setUp } from "../../src/privateServer";

let folder: string;
const before = process.env["PATH"];

beforeEach(async () => {
  folder = await mkdtemp(path.join(os.tmpdir(), "kt"));
});
afterEach(async () => {
  process.env["PATH"] = before;
  await rm(folder, { recursive: true });
});

/** Put a stand-in for Python on PATH: it notes its arguments, and `venv` makes another like it. */
async function fakePython(failing = "nothing"): Promise<string> {
  const bin = path.join(folder, "bin");
  await mkdir(bin, { recursive: true });
  const script = `#!/bin/sh
echo "$*" >>${folder}/calls
case "$*" in
  *"${failing}"*) echo "no room on the disk"; exit 3;;
  "-I -m venv "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; cp "$0" "$4/bin/keyturn";;
esac
`;
  const python = path.join(bin, "python3.11");
  await writeFile(python, script);
  await chmod(python, 0o755);
  process.env["PATH"] = `${bin}:/usr/bin:/bin`;
  return python;
}

async function inside() {
  const server = path.join(folder, "server");
  await mkdir(server);
  await writeFile(path.join(server, "keyturn-1.0-py3-none-any.whl"), "");
  const found = await carried(server);
  assert.ok(found);
  return found;
}

const run = (found: Awaited<ReturnType<typeof inside>>, steps: string[] = [], lines: string[] = []) =>
  setUp(path.join(folder, "private"), found, (step) => steps.push(step), (line) => lines.push(line), new AbortController().signal);

test("an extension without a wheel carries no server", async () => {
  assert.equal(await carried(path.join(folder, "missing")), undefined);
  await mkdir(path.join(folder, "server"));
  await writeFile(path.join(folder, "server", "requirements.txt"), "");
  assert.equal(await carried(path.join(folder, "server")), undefined);
});

test("everything that is installed is fixed by a hash or is the wheel itself", async () => {
  await fakePython();
  const found = await inside();
  const steps: string[] = [];
  await run(found, steps);
  assert.equal(steps.length, 4);
  const calls = (await readFile(path.join(folder, "calls"), "utf8")).trim().split("\n");
  const installs = calls.filter((call) => call.includes(" install "));
  assert.equal(installs.length, 3);
  for (const call of installs) {
    assert.match(call, /--no-deps/);
    assert.match(call, /--require-hashes --only-binary=:all: -r|--no-index \S+\.whl$/);
  }
  assert.equal(calls.at(-1), "--version");
  assert.equal(await isOutdated(path.join(folder, "private"), found), false);
  const newer = { ...found, wheel: path.join(folder, "keyturn-2.0-py3-none-any.whl") };
  assert.equal(await isOutdated(path.join(folder, "private"), newer), true);
});

test("a step that fails says what was printed last, and leaves nothing", async () => {
  await fakePython("torch.txt");
  await assert.rejects(run(await inside()), /ended with 3: no room on the disk/);
  assert.equal(await readFile(path.join(folder, "private", "bin", "python"), "utf8").catch(() => ""), "");
});

test("setting up can be broken off", async () => {
  await fakePython();
  const signal = AbortSignal.abort();
  const done = setUp(path.join(folder, "private"), await inside(), () => {}, () => {}, signal);
  await assert.rejects(done, { name: "AbortError" });
});

test("without a Python the error says what is needed", async () => {
  await assert.rejects(findPython(path.join(folder, "none"), "linux"), /Python 3\.11 or newer/);
  const python = await fakePython();
  assert.equal(await findPython(path.dirname(python), "linux"), python);
});
