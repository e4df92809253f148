"""Completion in a shell: commands, options, paths and saved queries; quick, quiet, and harmless."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import asking
import pytest
from commanding import call, ok
from costs import slowness, spent

import mirror
from mirror.records import Run

MIRROR = [sys.executable, "-c", "import sys; sys.argv[0] = 'mirror'; from mirror.cli import main; main()"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = asking.fill(tmp_path_factory.mktemp("completion") / "m")
    with mirror.open(root, write=True) as m:
        m.put_runs([Run(asking.key("bad\x1b[31m\nrun", "names")), Run(asking.key("a b", "names"))])
        m.put_runs([Run(asking.key("gone", "names"))])
        m.writer.tombstone(asking.key("gone", "names"))
    return root


def offered(line: str, root: Path | str) -> list[str]:
    """What is offered for the last word of a line."""
    words = line.split(" ")
    env = os.environ | {"_MIRROR_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(MIRROR, env=env | {"MIRROR_ROOT": str(root)}, capture_output=True, text=True, timeout=300)
    assert done.stderr == ""
    return [text.partition(",")[2] for text in done.stdout.splitlines() if text]


def test_commands_and_options(root: Path) -> None:
    assert {"sync", "sql", "runs", "diff", "completion"} <= {*offered("mirror ", root)}
    assert offered("mirror ru", root) == ["runs"]
    assert "--exit-code" in offered("mirror diff --", root)
    assert offered("mirror diff a b --format js", root) == ["json", "jsonl"]


def test_paths_a_level_at_a_time(root: Path) -> None:
    assert offered("mirror runs ", root) == ["team/"]
    assert offered("mirror runs team/", root) == ["team/digits/", "team/hostile/", "team/names/", "team/shared/"]
    assert offered("mirror diff team/digits/r", root) == ["team/digits/run1", "team/digits/run2", "team/digits/run3"]
    assert offered("mirror runs team/digits/x", root) == []
    # What would take effect in the shell is not offered, nor what is gone.
    assert offered("mirror diff team/names/", root) == ["team/names/a b"]


def test_saved_queries(root: Path) -> None:
    assert offered("mirror query lead", root) == ["leaderboard"]


def test_no_mirror_no_complaint(tmp_path: Path) -> None:
    assert offered("mirror runs ", tmp_path / "nothing") == []
    (tmp_path / "snapshot.json").write_text("{")
    assert offered("mirror runs ", tmp_path) == []


def test_completion_is_quick(root: Path) -> None:
    assert spent(lambda: offered("mirror runs team/digits/", root)) <= 0.3 * slowness()


def test_the_scripts(root: Path) -> None:
    assert "complete -o nosort -F _mirror_completion mirror" in ok("completion", "bash")
    assert "#compdef mirror" in ok("completion", "zsh")
    assert "complete --no-files --command mirror" in ok("completion", "fish")
    done = call("completion", "powershell")
    assert done.code == 2 and "'powershell' is not one of" in done.err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_script(root: Path, tmp_path: Path) -> None:
    command = tmp_path / "mirror"
    command.write_text(f"#!{sys.executable}\nfrom mirror.cli import main\nmain()\n")
    command.chmod(0o755)
    script = f"""{ok("completion", "bash")}
COMP_WORDS=(mirror runs team/d); COMP_CWORD=2; _mirror_completion mirror team/d runs; echo "${{COMPREPLY[*]}}" """
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MIRROR_ROOT": str(root)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout == "team/digits/\n", done.stderr
