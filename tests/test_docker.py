"""The image's files, as far as they can be tried without a container engine."""

import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from helpers.mlflow_server import MlflowServer
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from sesttune.system.compiler import COMPILERS

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


def compose(name: str) -> dict[str, Any]:
    """Without what Docker fills in."""
    text = re.sub(r"\$\{[^}]*\}", "filled-in", (DOCKER / name).read_text())
    content = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def test_the_image_copies_files_that_are_there_and_let_through() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((ROOT / name).exists() for name in names)
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    assert ignore[0] == "*"
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == names


def test_the_image_has_what_compiling_wants() -> None:
    (line,) = re.findall(r"apt-get install -y (.+) \\\n", (DOCKER / "Dockerfile").read_text())
    assert set(COMPILERS) & set(line.split())
    assert "python3-dev" in line.split()


def test_the_image_installs_every_dependency() -> None:
    (script,) = re.findall(r"python3 -c '(.+)'", (DOCKER / "Dockerfile").read_text())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    listed = [Requirement(line) for line in done.stdout.splitlines()]
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert listed == [Requirement(line) for line in declared]


def test_only_this_machine_reaches_the_server_of_compose() -> None:
    services = compose("compose.yaml")["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]
    with_gpus = compose("compose.gpu.yaml")["services"]
    assert set(with_gpus) == {"sesttune"} < set(services)


def test_the_server_of_compose_answers_sweeps_and_browsers_and_no_other_name(
    tmp_path: Path,
) -> None:
    program, command, *options = compose("compose.yaml")["services"]["mlflow"]["entrypoint"]
    assert (program, command) == ("mlflow", "server")
    own = ("--host=", "--port=", "--backend-store-uri=", "--artifacts-destination=")
    more = [option for option in options if not option.startswith(own)]
    server = MlflowServer(tmp_path, options=more)
    server.start()

    def asked_as(host: str) -> int:
        request = urllib.request.Request(
            f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
        )
        request.add_header("Host", host)
        try:
            return int(urllib.request.urlopen(request, timeout=30).status)
        except urllib.error.HTTPError as error:
            return error.code

    try:
        assert [asked_as(f"{name}:5000") for name in ("mlflow", "localhost", "127.0.0.1")] == [
            200
        ] * 3
        assert asked_as("elsewhere.example:5000") == 403
    finally:
        server.kill()
