"""Run notebooks from their first cell, and keep times and versions of the interpreter out of the files.

``python notebooks/execute.py FILE.ipynb ...`` writes the outputs into the files.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

LIMIT = 300  # seconds for each cell


def executed(file: Path) -> NotebookNode:
    """Return the notebook with the outputs of a new kernel of this interpreter, run in the folder of the notebook.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(file, as_version=4)
    about = dict(notebook.metadata)
    with TemporaryDirectory() as sockets:  # only for this user; by default a kernel opens ports
        transport = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(file.parent)}},
            config=Config({"KernelManager": transport}),
        ).execute()
    notebook.metadata = NotebookNode(about)  # the client writes the version of the interpreter there
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(executed(Path(name)), name)
