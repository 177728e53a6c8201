"""What ``metarec export --format web`` does: a folder of files in which a visitor's own browser adapts and recommends.

    index.html  style.css  icon.svg        the page
    app.js  recommender.js  search.js      what it does, as ES modules
    page.json                              what of it depends on the model
    model.onnx  catalogue.json             the model, as ``--format onnx`` writes it
    ort.wasm.bundle.min.mjs  *.wasm        ONNX Runtime Web, which runs it

Any server of static files will do; the page asks for nothing beyond its folder, and for nothing once it is there.
"""

import json
import shutil
from importlib.resources import as_file, files
from pathlib import Path

from client.export.export import Choices, check_free, prepare
from client.export.web_files import PAGE_FILE, TEMPLATES, WEB_FILES
from client.export.web_runtime import fetch_runtime
from metarec_shared.files import write_public_folder, write_text


def export_web(run: Path, out: Path, choices: Choices) -> dict[str, int]:
    """Export the model of a run as a web page; return the size of each file in bytes.

    Args:
        run: Folder of the run.
        out: Folder that is made.
        choices: How.

    Raises:
        CheckpointError: There is no usable model, or one that a graph cannot hold.
        DataError: The folder exists, and may not be replaced or is no earlier export.
        MetaRecError: What exports is not installed, npm among it, or npm cannot get what the page runs on.
    """
    check_free(out, WEB_FILES, replace=choices.replace)
    prepared = prepare(run, choices)

    def write(folder: Path) -> None:
        fetch_runtime(folder)  # first, since it may fail, and what follows takes long
        with as_file(files("client.export") / "web") as templates:
            for name in TEMPLATES:
                shutil.copyfile(templates / name, folder / name)
        prepared.write(folder)
        write_text(folder / PAGE_FILE, json.dumps({"reads_ratings": prepared.reads_ratings}) + "\n")

    write_public_folder(out, write)
    return {name: (out / name).stat().st_size for name in WEB_FILES}
