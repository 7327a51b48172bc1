"""Small archives in the publishers' real layouts, as torchvision's downloaders ask for them, and a server of them."""

import contextlib
import io
import json
import shutil
import sys
import tarfile
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

from scipy.io import savemat

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))

import trees  # noqa: E402

# Classes, and images of train, val and test, of the small trees without a split file
COUNTS = {
    "Caltech101": (5, 25, 10, 15),
    "OxfordPets": (3, 15, 3, 9),
    "OxfordFlowers": (3, 15, 6, 9),
    "Food101": (3, 15, 6, 9),
    "DescribableTextures": (2, 10, 4, 6),
    "EuroSAT": (3, 15, 6, 9),
    "FGVCAircraft": (3, 12, 12, 12),
    "SUN397": (3, 12, 3, 9),
    "StanfordCars": (3, 12, 3, 6),
}


def tar(**trees_of):
    """Bytes of a .tar.gz: name inside the archive (``__`` for a slash) -> a folder or a file."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, path in trees_of.items():
            archive.add(path, name.replace("__", "/"))
    return content.getvalue()


def zipped(files):
    """Bytes of a .zip: name -> bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def make(folder):
    """Name of each archive, as the publishers call it, -> its bytes; made of the small trees of the data-set tests."""
    folder = Path(folder)
    for name in COUNTS:
        trees.BUILDERS[name](folder)
    for hidden in folder.rglob(".DS_Store"):
        hidden.unlink()
    lines = (folder / "oxford_pets/annotations/trainval.txt").read_text()
    write(folder / "oxford_pets/annotations/list.txt", "#Image CLASS-ID\n" + lines)
    write(folder / "food/meta/train.json", json.dumps({"waffles": ["waffles/image_0001"]}))
    write(folder / "dtd/labels/train1.txt", "banded/image_0001.jpg\n")
    lists = [(folder / f"fgvc_aircraft/images_variant_{part}.txt").read_text() for part in ("train", "val")]
    write(folder / "fgvc_aircraft/images_variant_trainval.txt", "".join(lists))
    # SUN397's archive has the names of the scenes with it, and no lists of its partitions.
    shutil.copy(folder / "sun397/ClassName.txt", folder / "sun397/SUN397/ClassName.txt")
    splits = {"trnid": [[1, 2]], "valid": [[3]], "tstid": [[4]]}
    savemat(folder / "setid.mat", splits)
    land = folder / "eurosat"
    return {
        "caltech-101.zip": zipped(
            {
                "caltech-101/101_ObjectCategories.tar.gz": tar(
                    **{"101_ObjectCategories": folder / "caltech-101/101_ObjectCategories"}
                ),
                "caltech-101/Annotations.tar": b"not unpacked by torchvision",
            }
        ),
        "images.tar.gz": tar(images=folder / "oxford_pets/images"),
        "annotations.tar.gz": tar(annotations=folder / "oxford_pets/annotations"),
        "102flowers.tgz": tar(jpg=folder / "oxford_flowers/jpg"),
        "imagelabels.mat": (folder / "oxford_flowers/imagelabels.mat").read_bytes(),
        "setid.mat": (folder / "setid.mat").read_bytes(),
        "food-101.tar.gz": tar(
            **{"food-101__images": folder / "food-101/images", "food-101__meta": folder / "food/meta"}
        ),
        "dtd-r1.0.1.tar.gz": tar(dtd__images=folder / "dtd/images", dtd__labels=folder / "dtd/labels"),
        "EuroSAT.zip": zipped({str(p.relative_to(land)): p.read_bytes() for p in land.rglob("*.jpg")}),
        "fgvc-aircraft-2013b.tar.gz": tar(**{"fgvc-aircraft-2013b__data": folder / "fgvc_aircraft"}),
        "SUN397.tar.gz": tar(SUN397=folder / "sun397/SUN397"),
    }


@contextlib.contextmanager
def served(archives):
    """A local server of archives by their names; yields its address and the list of the names that were fetched.

    A name in ``archives`` whose bytes are None is not found; what is asked for with HEAD counts nothing.
    """
    fetched = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            content = archives.get(name)
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            fetched.append(self.path.rpartition("/")[2])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def redirect(monkeypatch, address):
    """Let every address that torchvision opens lead to the local server."""
    opened = urllib.request.urlopen

    def urlopen(request, *args, **keys):
        url = request.full_url if isinstance(request, urllib.request.Request) else request
        local = address + urlparse(url).path
        return opened(urllib.request.Request(local, headers={"User-Agent": "test"}), *args, **keys)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
