"""Run the notebooks and keep their output: ``python docs/run_notebooks.py [NAME …]``.

Needs ``pip install 'guidestar[docs]'``. A cell that raises ends the command with its traceback.
The tests run the same cells without Jupyter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent / "notebooks"


def main(names: list[str]) -> None:
    """Run the named notebooks, or all."""
    for path in [HERE / f"{n}.ipynb" for n in names] or sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)  # times, which change with each run
            if "outputs" in cell:  # progress bars and notices, which are the machine's
                cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
