"""The reference Java client (net.handle:handle-client, from Maven Central) against a node:
`make peers`. Needs java and mvn; not part of `make test`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from biaojie.keys import keyfile
from tests.handle_talk import PREFIX, RSA, SECRET
from tests.system.test_handle_live import with_admin

if TYPE_CHECKING:
    from tests.system.conftest import RunningNode

HERE = Path(__file__).parent
STEPS = 18 * 15 + 5
"""Steps of a tour, for each way to log in, transport and kind of session; and those around."""


def test_the_reference_client(make_node: Callable[..., RunningNode], tmp_path: Path) -> None:
    for tool in ("java", "mvn"):
        assert shutil.which(tool), f"this needs {tool} on the PATH"
    for name in ("pom.xml", "ReferenceClient.java"):
        shutil.copy(HERE / name, tmp_path)
    build = ["mvn", "-q", "compile", "dependency:build-classpath", "-Dmdep.outputFile=classpath"]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=600)
    (tmp_path / "key.bin").write_bytes(keyfile.encode_private(RSA))
    node = with_admin(make_node())
    classpath = os.pathsep.join(("target/classes", (tmp_path / "classpath").read_text().strip()))
    port = str(node.handle_port)
    arguments = ["127.0.0.1", port, PREFIX, SECRET.decode(), "key.bin"]
    # Left to itself the library asks the public root servers whether its root is up to date.
    home = tmp_path / "home" / ".handle"
    home.mkdir(parents=True)
    (home / "config.dct").write_text('{\n"auto_update_root_info" = "no"\n}\n')
    done = subprocess.run(
        ["java", f"-Duser.home={home.parent}", "-cp", classpath, "ReferenceClient", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("FAIL")] == [], done.stderr[-2000:]
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum(line.startswith("ok ") for line in lines) == STEPS
