"""Tensors that stay in their file until they are taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping

from ...kernels.weights.linear import Matrix


class StreamedTensors(MutableMapping[str, Matrix]):
    """Tensors that are read each time they are looked up, so that nobody holds them all."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Matrix]) -> None:
        """Take the names and what reads one of them."""
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Matrix:
        """Read a tensor.

        Raises:
            ModelLoadError: from reading.
        """
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __setitem__(self, name: str, tensor: Matrix) -> None:
        """Do nothing but fail: what is in the files stays as it is."""
        raise TypeError(f"'{name}' is in a file")

    def __delitem__(self, name: str) -> None:
        """Forget a name."""
        del self._names[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names that are left."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return how many are left."""
        return len(self._names)
