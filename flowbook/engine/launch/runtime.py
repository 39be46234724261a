"""flowbook's own code as one file that a pod fetches: a zip of the rooms that a worker needs, and cloudpickle.

The same code gives the same bytes, so it is sent to a store once. Beside each source stands its bytecode for this Python; a pod of
another minor version passes over that and compiles for itself.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from importlib import _bootstrap_external  # type: ignore[attr-defined]  # how a .pyc begins is told nowhere else
from pathlib import Path
from typing import Any

from flowbook.errors import ClusterError

_bytecode: Any = _bootstrap_external
LEFT_OUT = tuple("kernel cli engine deploy server static labextension testing.py build.py runner.py".split())
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold


@functools.cache
def runtime() -> bytes:
    """The zip. Raises ClusterError where cloudpickle is not installed as plain files."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, path in sorted(_files()):
            source = path.read_bytes()
            _add(archive, name, source)
            _add(archive, f"{name}c", _compiled(path, source))
    return target.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, data)


def _compiled(path: Path, source: bytes) -> bytes:
    """Bytecode that is taken without a look at the source. Most of it is there: this process, or one before it, has imported the file."""
    code = importlib.machinery.SourceFileLoader(path.stem, str(path)).get_code(path.stem)
    return bytes(_bytecode._code_to_hash_pyc(code, importlib.util.source_hash(source), False))


def _files() -> Iterator[tuple[str, Path]]:
    for package, left_out in (("flowbook", LEFT_OUT), ("cloudpickle", ())):
        spec = importlib.util.find_spec(package)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not places or not Path(places[0]).is_dir():
            raise ClusterError(f"the package {package} is not there as plain files, so pods cannot be given it. Install it with pip")
        folder = Path(places[0])
        for path in folder.rglob("*.py"):
            relative = path.relative_to(folder)
            if relative.parts[0] not in left_out and "__pycache__" not in relative.parts:
                yield f"{package}/{relative.as_posix()}", path
