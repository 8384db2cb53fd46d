"""Open an HDF5 file to read it, or say in a line why that cannot be.

HDF5 takes a lock also to read, so a file that another process writes cannot be opened, nor one on
a file system without locks.
"""

import errno
from pathlib import Path

import h5py

from sesttune.errors import UserError, check_file

GZIP = b"\x1f\x8b"
FOREIGN = {
    "matrix/barcodes": "of 10x: scanpy.read_10x_h5(FILE).write_h5ad(NEW)",
    "mod": "a MuData: mudata.read(FILE)[MODALITY].write_h5ad(NEW)",
}
"""Part of a file that is no AnnData -> what it is, and how one is made of it."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_hdf5(path: Path) -> h5py.File:
    """Raises UserError for a file that is missing, locked, compressed or no HDF5."""
    check_file(path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} {_reason(path, error)}") from None


def other_file(group: h5py.Group, name: str, depth: int = 3) -> str | None:
    """The other file that the object `name` of `group`, or a part of it, lies in, if one does.

    HDF5 gives zeros, and no error, where the source of a virtual dataset is missing, and nobody
    sees when the other file changes: a file is known by its own size and time.
    """
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return str(link.filename)
    held = group.get(name)
    if held is not None and held.file.filename != group.file.filename:
        return str(held.file.filename)  # by a link that leads through one to another file
    if isinstance(held, h5py.Dataset):
        sources = [source.file_name for source in held.virtual_sources()] if held.is_virtual else []
        sources += [source for source, _, _ in held.external or ()]
        return next((str(source) for source in sources if source != "."), None)
    if not isinstance(held, h5py.Group) or not depth:
        return None
    return next((found for part in held if (found := other_file(held, part, depth - 1))), None)


def described(file: h5py.File) -> str:
    """What a file that is no AnnData is, in brackets, where one can tell."""
    found = [what for part, what in FOREIGN.items() if part in file]
    return f" ({found[0]})" if found else ""


def _reason(path: Path, error: OSError) -> str:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return "is being written by another process: wait until that has closed it"
    if error.errno in NO_LOCKS:
        return "lies on a file system without locks: set HDF5_USE_FILE_LOCKING=FALSE"
    if "h5clear" in str(error):
        return "was not closed by the process that wrote it: write it again"
    with path.open("rb") as file:
        if file.read(len(GZIP)) == GZIP:
            return "is compressed: unpack it with gunzip"
    return f"is not an HDF5 file, or is truncated ({error}): copy it again"
