"""Run notebooks from their first cell, with no word of the time or the interpreter in them.

``python notebooks/execute.py FILE.ipynb ...`` writes the outputs into the files.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

LIMIT = 300  # seconds a cell


def executed(file: Path) -> NotebookNode:
    """The notebook with the outputs of a fresh kernel of this interpreter, which works in the notebook's folder.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(file, as_version=4)
    about = dict(notebook.metadata)
    with TemporaryDirectory() as sockets:  # of this user alone, where the kernel's default is open ports
        transport = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(file.parent)}},
            config=Config({"KernelManager": transport}),
        ).execute()
    notebook.metadata = NotebookNode(about)  # the client notes the interpreter's version there
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
