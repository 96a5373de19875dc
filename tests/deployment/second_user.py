"""Other users of this machine, and a Python that they may run."""

import grp
import os
import pwd
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.deployment.superlink_harness import environment

_LEFT_OUT = shutil.ignore_patterns(
    "site-packages", "test", "tests", "config-*", "idlelib", "lib2to3", "tkinter", "ensurepip"
)


@dataclass(frozen=True, kw_only=True)
class User:
    """An unprivileged user that every Linux has, with one more group."""

    name: str
    group: str = ""

    @property
    def uid(self) -> int:
        """Its number."""
        return pwd.getpwnam(self.name).pw_uid

    def options(self) -> dict[str, Any]:
        """Popen's, to run as it."""
        groups = [grp.getgrnam(self.group).gr_gid] if self.group else []
        return {"user": self.uid, "group": pwd.getpwnam(self.name).pw_gid, "extra_groups": groups, "cwd": "/"}

    def own(self, path: Path) -> None:
        """Give it a directory with all that is inside."""
        for entry in (path, *path.rglob("*")):
            os.chown(entry, self.uid, pwd.getpwnam(self.name).pw_gid, follow_symlinks=False)


@dataclass(frozen=True, kw_only=True)
class PublicPython:
    """An interpreter with Fedward and Flower that every user may run."""

    python: str
    environment: dict[str, str]


def public_python(place: Path) -> PublicPython | None:
    """This Python if others may run it, else a copy of it in `place`; None if they may not read the packages either."""
    packages = Path(sysconfig.get_path("purelib"))
    if not (_open_to_all(packages) and _open_to_all(Path(__file__).parents[2])):
        return None
    if _open_to_all(Path(sys.executable)) and _open_to_all(Path(sys.executable).resolve()):
        return PublicPython(python=sys.executable, environment=environment())
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    base, copy, venv = Path(sys.base_prefix), place / "python", place / "venv"
    shutil.copytree(base / "lib" / version, copy / "lib" / version, ignore=_LEFT_OUT)
    for library in (base / "lib").glob("libpython*"):
        shutil.copy(library, copy / "lib" / library.name)
    (copy / "bin").mkdir()
    shutil.copy(Path(sys.executable).resolve(), copy / "bin" / version)
    (venv / "bin").mkdir(parents=True)
    (venv / "lib" / version).mkdir(parents=True)
    (venv / "lib" / version / "site-packages").symlink_to(packages)
    (venv / "bin" / "python").symlink_to(copy / "bin" / version)
    (venv / "pyvenv.cfg").write_text(f"home = {copy / 'bin'}\ninclude-system-site-packages = false\n")
    for script in Path(sys.executable).parent.glob("fl*w*r*"):
        _, _, rest = script.read_text().partition("\n")
        (venv / "bin" / script.name).write_text(f"#!{venv / 'bin' / 'python'}\n{rest}")
        (venv / "bin" / script.name).chmod(0o755)
    found = environment(LD_LIBRARY_PATH=str(copy / "lib"))
    return PublicPython(
        python=str(venv / "bin" / "python"), environment={**found, "PATH": f"{venv / 'bin'}:{found['PATH']}"}
    )


def _open_to_all(path: Path) -> bool:
    """Whether users who own nothing of it may read it and pass all directories above."""
    way = (path, *path.parents)
    return all(place.stat().st_mode & (0o001 if place.is_dir() else 0o004) for place in way)
