"""The folder `perilune deploy` writes: golden, valid for compose, Kubernetes, systemd, the shell and Docker's linter.

PERILUNE_UPDATE_GOLDEN=1 writes the golden folders anew; read the difference before it is committed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from perilune.deploy.catalog import recipes
from perilune.deploy.condition import Truth
from perilune.deploy.files import TORCH, compose, deployment, kube, word, write
from perilune.deploy.hosts import Examined, examined
from perilune.deploy.launch import Asked, Launch, resolve
from perilune.deploy.plans import planned
from perilune.deploy.points import point_of
from perilune.errors import ConfigError
from perilune.host.distro import Family

HERE = Path(__file__).parent
DATA = HERE.parents[0] / "data"
GOLDEN = HERE / "golden"
GOLDEN_CASES = (
    "kimi-linear-48b-int4/strix-halo/vllm",
    "kimi-linear-48b-int4/strix-halo/perilune",
    "glm-4.7-flash/strix-halo/llama.cpp",
    "kimi-linear-48b/mi300x/vllm",
    "kimi-k2.5-mxfp4/mi355x/vllm",
)
REAL = [found for found in recipes() if found.model != "*"]


def launch(found, asked: Asked | None = None) -> Launch:
    return resolve(found, point_of(found), asked=asked)


def files(found) -> dict[str, str]:
    return deployment(launch(found), Examined("another machine"), "It was not planned.")


def schema(name: str) -> Any:
    return jsonschema_rs.validator_for(json.loads((HERE / "schemas" / f"{name}.json").read_text()))


def tool(name: str) -> str:
    """A linter of the development dependencies: beside Python, whether or not the environment is on PATH."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    assert found, f"{name} is not installed; make test does"
    return found


each_recipe = pytest.mark.parametrize("found", REAL, ids=lambda found: found.name)


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    made = files(next(found for found in REAL if found.name == name))
    folder = GOLDEN / name.replace("/", "__")
    if os.environ.get("PERILUNE_UPDATE_GOLDEN"):
        shutil.rmtree(folder, ignore_errors=True)
        write(made, folder)
    assert made == {path.name: path.read_text() for path in sorted(folder.iterdir())}


@each_recipe
def test_compose_is_valid_and_says_what_the_launch_says(found) -> None:
    started, text = launch(found), files(found)["compose.yaml"]
    loaded = yaml.safe_load(text)
    schema("compose").validate(loaded)
    service = loaded["services"][loaded["name"]]
    words = [word.replace("$$", "$") for word in (*service["entrypoint"], *service["command"])]
    assert words == list(started.argv)
    assert {name: service["environment"][name] for name in started.environment} == started.environment
    assert ("/dev/kfd" in service.get("devices", ())) == found.devices
    assert set(loaded.get("volumes", ())) == {cache.volume for cache in found.cache}


@each_recipe
def test_kubernetes_is_valid_and_says_what_the_launch_says(found) -> None:
    made = files(found)
    if found.host == "strix-halo":
        assert "kubernetes.yaml" not in made
        return
    started = launch(found)
    documents = list(yaml.safe_load_all(made["kubernetes.yaml"]))
    for document in documents:
        schema("kubernetes").validate(document)
    (deployed,) = [document for document in documents if document["kind"] == "Deployment"]
    (engine,) = deployed["spec"]["template"]["spec"]["containers"]
    assert (*engine["command"], *engine["args"]) == started.argv
    if found.engine != "perilune":
        assert engine["resources"]["limits"]["amd.com/gpu"] == str(started.point.tp)
    paths = {mount["mountPath"] for mount in engine["volumeMounts"]}
    assert ("/models" in paths) == started.checkpoint.startswith("/models/")
    mounted = {mount["name"] for mount in engine["volumeMounts"]}
    assert mounted <= {volume["name"] for volume in deployed["spec"]["template"]["spec"]["volumes"]}
    if found.patch_tokenizer:
        (config,) = [document for document in documents if document["kind"] == "ConfigMap"]
        assert config["data"]["patch_tokenizer.py"].strip() == made["patch_tokenizer.py"].strip()


@each_recipe
def test_kubernetes_own_schemas_agree(found) -> None:
    import kubernetes_validate

    for document in yaml.safe_load_all(files(found).get("kubernetes.yaml", "")):
        kubernetes_validate.validate(document, "1.30", strict=True)


@each_recipe
def test_the_unit_starts_the_same_words(found) -> None:
    (unit,) = [text for name, text in files(found).items() if name.endswith(".container")]
    keys = [line.partition("=") for line in unit.splitlines() if "=" in line and not line.startswith("#")]
    values = {name: value for name, _, value in keys}
    assert shlex.split(values["Exec"].replace("$$", "$").replace("%%", "%")) == list(launch(found).argv[1:])
    assert {"Image", "Entrypoint", "PublishPort", "HealthCmd", "WantedBy"} <= set(values)
    sections = [line for line in unit.splitlines() if line.startswith("[")]
    assert sections == ["[Unit]", "[Container]", "[Service]", "[Install]"]


@each_recipe
def test_scripts_pass_shellcheck(found, tmp_path: Path) -> None:
    scripts = [path for path in write(files(found), tmp_path) if path.suffix == ".sh"]
    assert all(os.access(path, os.X_OK) for path in scripts)
    done = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@each_recipe
def test_dockerfiles_pass_hadolint(found, tmp_path: Path) -> None:
    text = files(found).get("Dockerfile")
    if text is None:
        return
    done = subprocess.run([tool("hadolint"), "-"], input=text, capture_output=True, text=True, check=False)
    ours = [line for line in done.stdout.splitlines() if "DL3007" not in line]  # a recipe's image may be `latest`
    assert not ours


def test_docker_itself_reads_the_compose_file(tmp_path: Path) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode if shutil.which(
        "docker"
    ) else True:  # fmt: skip
        pytest.skip("needs docker compose")
    write(files(REAL[0]), tmp_path)
    groups = {**os.environ, "RENDER_GID": "1", "VIDEO_GID": "2", "PERILUNE_SOURCE": str(tmp_path)}
    done = subprocess.run(["docker", "compose", "config"], cwd=tmp_path, env=groups, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_torch_is_the_pinned_one() -> None:
    assert f'"torch=={TORCH}"' in (HERE.parents[1] / "pyproject.toml").read_text()


def test_nothing_is_replaced_inside_a_word() -> None:
    assert yaml.safe_load(compose("a $HOME ${X}")) == "a $$HOME $${X}"
    assert yaml.safe_load(kube("$(X) $Y")) == "$$(X) $Y"
    assert word("100%") == "100%%"
    assert shlex.split(word('{"a b": 1}')) == ['{"a b": 1}']


def test_the_readme_has_the_steps_the_doctor_still_wants(tmp_path: Path) -> None:
    sys.path.insert(0, str(HERE.parent / "host"))
    try:
        from bundles import load, write_tree
    finally:
        sys.path.pop(0)
    tree = write_tree(load("reconstructed/2.7-cap31"), tmp_path / "host")
    found = next(found for found in REAL if found.name == GOLDEN_CASES[0])
    host = examined("strix-halo", tree)
    assert host.report is not None
    readme = deployment(resolve(found, point_of(found), checks=host.checks), host, "Fine.")["README.md"]
    assert "**mem.class** (fail)" in readme
    steps = [fix.text(Family.DEBIAN) for check in host.report.checks for fix in check.fixes if check.status == "fail"]
    assert steps
    assert all(f"- {step}" in readme or f": {step}" in readme for step in steps)
    assert examined("mi300x", tree).report is None, "another host's checks are not used"


def test_what_was_edited_is_not_written_over(tmp_path: Path) -> None:
    made = files(REAL[0])
    write(made, tmp_path)
    write(made, tmp_path)
    (tmp_path / "compose.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="different"):
        write(made, tmp_path)
    write(made, tmp_path, force=True)
    assert (tmp_path / "compose.yaml").read_text() == made["compose.yaml"]


# --- the plan


def test_a_plan_that_cannot_be_made_is_unknown_and_never_fine(tmp_path: Path) -> None:
    answer = planned(launch(REAL[0]), tmp_path / "nothing")
    assert answer.fits is Truth.UNKNOWN
    assert "no plan" in answer.says


@pytest.mark.parametrize(("tp", "fits"), [(4, Truth.YES), (1, Truth.YES)])
def test_vllm_on_instinct_is_planned_with_its_own_pages(tp: int, fits: Truth) -> None:
    found = next(found for found in REAL if found.name == "kimi-linear-48b/mi300x/vllm")
    answer = planned(resolve(found, point_of(found, tp=tp, concurrency=4)), DATA / "kimi-linear-48b")
    assert answer.fits is fits
    assert f"blocks of {1920 if tp == 1 else 512} tokens" in answer.says


def test_a_file_larger_than_the_memory_does_not_fit(tmp_path: Path) -> None:
    found = next(found for found in REAL if found.name == "glm-4.7-flash/strix-halo/llama.cpp")
    gguf = tmp_path / "large.gguf"
    with gguf.open("wb") as file:
        file.truncate(111 << 30)
    assert planned(launch(found), gguf).fits is Truth.NO


# --- the tokenizer's patch

OLD = "from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode\n"


def patched(folder: Path, home: Path) -> str:
    script = files(next(found for found in REAL if found.patch_tokenizer))["patch_tokenizer.py"]
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env={**os.environ, "HF_HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_tokenizer_is_patched_once_behind_links_and_in_the_module_cache(tmp_path: Path) -> None:
    blob, home = tmp_path / "blob", tmp_path / "home"
    blob.write_text(f"import os\n{OLD}x = bytes_to_unicode()\n")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "tokenization_kimi.py").symlink_to(blob)
    copy = home / "modules" / "transformers_modules" / "tokenization_kimi.py"
    copy.parent.mkdir(parents=True)
    copy.write_text(OLD)
    assert patched(folder, home).count("changed") == 2
    assert "convert_slow_tokenizer" in blob.read_text()
    assert OLD in (tmp_path / "blob.orig").read_text()
    assert (folder / "tokenization_kimi.py").is_symlink()
    first = blob.read_text()
    assert patched(folder, home).count("nothing to do") == 2
    assert blob.read_text() == first
    namespace: dict[str, Any] = {}
    exec(blob.read_text(), namespace)  # what it imports now is there, in the transformers the tests have
    assert len(namespace["x"]) == 256


def test_a_tokenizer_that_is_right_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenization_kimi.py").write_text("import os\n")
    patched(tmp_path, tmp_path / "home")
    assert not list(tmp_path.glob("*.orig"))
