"""Write files whole or not at all: a temporary name beside the target, then a rename.

A reader, and a kill at any point, finds the old file or the new one, never a part.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and goes when it does not."""
    draft = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`Path.write_text`, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text)
