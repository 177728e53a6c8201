"""Names of the files of an exported web page, for what writes it and what serves it; nothing here imports much."""

from client.export.exported import CATALOGUE_FILE, GRAPH_FILE
from client.export.web_runtime import RUNTIME_FILES

START_FILE = "index.html"
PAGE_FILE = "page.json"
TEMPLATES = (
    START_FILE,
    "style.css",
    "icon.svg",
    "app.js",
    "recommender.js",
    "search.js",
    "onnxruntime-web.LICENSE.txt",
)
"""Files that are the same for every model, in ``client/export/web``."""

WEB_FILES = (*TEMPLATES, PAGE_FILE, GRAPH_FILE, CATALOGUE_FILE, *RUNTIME_FILES)
