"""The Krew manifest: by Krew's own rules, with the hash of an archive whose plugin runs `isthmus`."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path

import yaml
from click.testing import CliRunner

from deploy.kubernetes.krew import PLACEHOLDER, archive, file_name, krew, manifest


def written(place: Path, *options: str) -> tuple[dict[str, object], bytes]:
    done = CliRunner().invoke(krew, ["--to", str(place), *options])
    assert done.exit_code == 0, done.output
    (path,) = place.glob("isthmus-*-krew.yaml")
    (packed,) = place.glob("isthmus-kubectl-*.tar.gz")
    return yaml.safe_load(path.read_text()), packed.read_bytes()


def test_the_manifest_is_as_krew_wants_it_and_names_no_host(tmp_path: Path) -> None:
    document, packed = written(tmp_path)
    assert document["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert document["kind"] == "Plugin"
    assert document["metadata"] == {"name": "isthmus"}
    spec = document["spec"]
    assert isinstance(spec, dict)
    assert set(spec) <= {"version", "shortDescription", "description", "caveats", "homepage", "platforms"}
    assert re.fullmatch(r"v\d+\.\d+\.\d+", spec["version"])
    assert 0 < len(spec["shortDescription"]) <= 50
    assert "\n" not in spec["shortDescription"]
    for platform in spec["platforms"]:
        assert set(platform) == {"selector", "uri", "sha256", "bin", "files"}
        assert platform["sha256"] == sha256(packed).hexdigest()
        assert platform["uri"] == f"{PLACEHOLDER}/{file_name(spec['version'][1:])}"
        assert all(set(entry) == {"from", "to"} for entry in platform["files"])
        assert set(platform["selector"]) <= {"matchLabels", "matchExpressions"}
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            members = {member.name: member for member in tar.getmembers()}
            assert members[platform["bin"]].mode & 0o111
            assert all(
                m.isfile() and not m.name.startswith("/") and ".." not in m.name for m in members.values()
            )


def test_whoever_serves_the_archive_says_where(tmp_path: Path) -> None:
    document, _ = written(tmp_path, "--uri", "https://files.example/isthmus.tar.gz")
    assert "https://files.example/isthmus.tar.gz" in yaml.safe_dump(document)
    assert PLACEHOLDER not in yaml.safe_dump(document)


def test_the_same_release_gives_the_same_bytes() -> None:
    assert archive() == archive()
    assert manifest("1.2.3", archive()) == manifest("1.2.3", archive())


def test_the_plugin_runs_the_command_line_of_the_machine_or_says_what_is_missing(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive())) as tar:
        tar.extractall(tmp_path, filter="data")
    plugin, commands = tmp_path / "kubectl-isthmus", tmp_path / "bin"
    commands.mkdir()
    env = {**os.environ, "PATH": "/nonexistent"}
    missing = subprocess.run(
        ["/bin/sh", plugin, "status"], env=env, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 127
    assert "the package isthmus" in missing.stderr
    (commands / "isthmus").write_text('#!/bin/sh\necho "$@"; exit 3\n')
    (commands / "isthmus").chmod(0o755)
    env["PATH"] = str(commands)
    ran = subprocess.run(
        ["/bin/sh", plugin, "entry", "list", "a b"], env=env, capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.returncode) == ("entry list a b\n", 3)
