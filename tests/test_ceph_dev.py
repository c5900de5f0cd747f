"""The scripts of ceph-dev/, with real clusters."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.ceph,
    pytest.mark.skipif(not shutil.which("ceph-mon"), reason="ceph-mon is not installed: run ceph-dev/install"),
]

SCRIPTS = Path(__file__).parents[1] / "ceph-dev"
DATA = bytes(range(256)) * 4096


def script(name: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def rbd(conf: Path, *arguments: object, seconds: float = 20, **options: Any) -> bytes:
    command = ["rbd", "-c", str(conf), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=seconds, **options).stdout


def write_image(conf: Path, name: str) -> None:
    rbd(conf, "import", "--no-progress", "-", f"rbd/{name}", input=DATA)


def read_image(conf: Path, name: str) -> bytes:
    return rbd(conf, "export", "--no-progress", f"rbd/{name}", "-")


def rows(directory: Path) -> dict[str, Any]:
    return {row["name"]: row for row in json.loads(script("status", "--dir", directory, "--json").stdout)}


def pids(directory: Path, name: str) -> dict[str, int]:
    return {daemon: found["pid"] for daemon, found in rows(directory)[name]["daemons"].items()}


def daemons_below(directory: Path) -> list[str]:
    """Command lines of whatever runs with a path below the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if f"{directory}/" in line else []
    return found


def wait_until(question: Any, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Clusters a and b, which every test leaves running."""
    directory = tmp_path_factory.mktemp("pair")
    script("up", "--dir", directory, "a", "b")
    yield directory
    script("down", "--dir", directory, "--purge")
    assert list(directory.iterdir()) == []
    assert daemons_below(directory) == []


@pytest.fixture
def foreigner() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("name", ["up", "down", "status", "daemon", "run", "install"])
def test_every_script_has_help(name: str) -> None:
    assert script(name, "--help").stdout.startswith(f"usage: {name}")


def test_both_clusters_are_sites(pair: Path) -> None:
    sites = tomllib.loads((pair / "rbdtree.toml").read_text())["sites"]
    assert sites == {name: {"conf": str(pair / name / "ceph.conf"), "id": "admin"} for name in "ab"}


def test_clusters_are_apart_and_hold_images(pair: Path) -> None:
    found = rows(pair)
    assert found["a"]["fsid"] != found["b"]["fsid"]
    assert found["a"]["address"] != found["b"]["address"]
    write_image(pair / "a/ceph.conf", "apart")
    assert read_image(pair / "a/ceph.conf", "apart") == DATA
    assert b"apart" not in rbd(pair / "b/ceph.conf", "ls")


def test_up_leaves_a_running_cluster_alone(pair: Path) -> None:
    before = pids(pair, "a"), pids(pair, "b")
    done = script("up", "--dir", pair, "--json", "--osds", 3, "a", "b")
    assert [row["did"] for row in json.loads(done.stdout)] == ["running", "running"]
    assert "a  " in done.stderr
    assert "already running; made with --osds 1, left so" in done.stderr
    assert (pids(pair, "a"), pids(pair, "b")) == before


def test_a_killed_osd_comes_back_with_its_data(pair: Path) -> None:
    conf = pair / "a/ceph.conf"
    write_image(conf, "killed")
    first = pids(pair, "a")["osd.0"]
    script("daemon", "--dir", pair, "a", "osd.0", "kill")
    assert script("daemon", "--dir", pair, "a", "osd.0", "status").stdout == "dead\n"
    assert rows(pair)["a"]["state"] == "degraded"
    assert "osd.0 is not running" in script("daemon", "--dir", pair, "a", "osd.0", "pause", code=1).stderr
    script("daemon", "--dir", pair, "a", "osd.0", "start")
    assert pids(pair, "a")["osd.0"] != first
    assert read_image(conf, "killed") == DATA
    script("daemon", "--dir", pair, "a", "osd.0", "restart")
    assert read_image(conf, "killed") == DATA


def test_up_starts_dead_daemons(pair: Path) -> None:
    script("daemon", "--dir", pair, "a", "mon.a", "kill")
    script("daemon", "--dir", pair, "a", "osd.0", "stop")
    assert "mon.a is dead" in script("daemon", "--dir", pair, "a", "osd.0", "start", code=1).stderr
    assert "started in" in script("up", "--dir", pair, "a").stderr
    script("daemon", "--dir", pair, "a", "mon.a", "kill")
    assert "started mon.a" in script("up", "--dir", pair, "a").stderr
    script("daemon", "--dir", pair, "a", "mon.a", "restart")
    rbd(pair / "a/ceph.conf", "ls")


def test_a_paused_osd_is_silent_until_resumed(pair: Path) -> None:
    conf = pair / "b/ceph.conf"
    script("daemon", "--dir", pair, "b", "osd.0", "pause")
    assert script("daemon", "--dir", pair, "b", "osd.0", "status").stdout == "paused\n"
    with pytest.raises(subprocess.TimeoutExpired):
        rbd(conf, "ls", seconds=1)
    script("daemon", "--dir", pair, "b", "osd.0", "resume")
    rbd(conf, "ls")


@pytest.mark.faults
def test_an_osd_that_slept_for_long_answers_again(pair: Path) -> None:
    """Longer than the read lease that its heartbeat grace would give."""
    conf = pair / "b/ceph.conf"
    write_image(conf, "slept")
    script("daemon", "--dir", pair, "b", "osd.0", "pause")
    time.sleep(10)
    script("daemon", "--dir", pair, "b", "osd.0", "resume")
    assert read_image(conf, "slept") == DATA


def test_down_and_up_keep_the_data(pair: Path) -> None:
    conf = pair / "b/ceph.conf"
    write_image(conf, "kept")
    script("daemon", "--dir", pair, "b", "osd.0", "pause")
    script("down", "--dir", pair, "b")
    assert rows(pair)["b"]["state"] == "stopped"
    assert daemons_below(pair / "b") == []
    assert "started in" in script("up", "--dir", pair, "b").stderr
    assert read_image(conf, "kept") == DATA


def test_down_never_ends_a_foreign_process(pair: Path, foreigner: subprocess.Popen[bytes]) -> None:
    """A pid file may name a process that got the pid later; a command line may name our conf by chance."""
    script("daemon", "--dir", pair, "b", "osd.0", "stop")
    (pair / "b/run/osd.0.pid").write_text(f"{foreigner.pid}\n")
    with subprocess.Popen(["tail", "-f", str(pair / "b/ceph.conf")], stdout=subprocess.DEVNULL) as reader:
        script("daemon", "--dir", pair, "b", "osd.0", "kill", code=1)
        script("down", "--dir", pair, "b")
        assert foreigner.poll() is None
        assert reader.poll() is None
        reader.kill()
    script("up", "--dir", pair, "b")


def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    """up dies in the middle of a boot."""
    booting = subprocess.Popen([SCRIPTS / "up", "--dir", tmp_path, "h"], stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "h/run/mon.a.pid").exists)
    booting.kill()
    booting.wait()
    assert rows(tmp_path)["h"]["state"] == "half-made"
    assert daemons_below(tmp_path) != []
    assert "was half-made, made anew" in script("up", "--dir", tmp_path, "h").stderr
    assert rows(tmp_path)["h"]["state"] == "running"
    script("down", "--dir", tmp_path, "--purge", "h")
    assert daemons_below(tmp_path) == []


def test_an_interrupted_up_leaves_no_process(tmp_path: Path) -> None:
    booting = subprocess.Popen([SCRIPTS / "up", "--dir", tmp_path, "i"], stderr=subprocess.PIPE, text=True)
    wait_until((tmp_path / "i/run/mon.a.pid").exists)
    booting.terminate()
    assert "interrupted" in booting.communicate(timeout=20)[1]
    assert booting.returncode == 128 + signal.SIGTERM
    wait_until(lambda: daemons_below(tmp_path) == [])
    script("down", "--dir", tmp_path, "--purge")
    assert list(tmp_path.iterdir()) == []


def test_memstore_says_that_it_forgets(tmp_path: Path) -> None:
    arguments = ("--dir", tmp_path, "--objectstore", "memstore", "m")
    assert "lost when they stop" in script("up", *arguments).stderr
    write_image(tmp_path / "m/ceph.conf", "gone")
    assert "its memstore is lost" in script("down", "--dir", tmp_path).stderr
    assert "made anew" in script("up", *arguments).stderr
    assert rbd(tmp_path / "m/ceph.conf", "ls") == b""
    script("down", "--dir", tmp_path, "--purge")


def test_directories_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/thesis.txt").write_text("a year of work")
    assert "was not made by ceph-dev" in script("up", "--dir", tmp_path, "theirs", code=1).stderr
    assert "no cluster theirs" in script("down", "--dir", tmp_path, "--purge", "theirs", code=1).stderr
    script("down", "--dir", tmp_path, "--purge")
    assert (tmp_path / "theirs/thesis.txt").exists()


def test_a_daemon_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    done = script("up", "--dir", tmp_path, "--size", 4096, "bad", code=1)
    assert "bad: osd.0 could not make its store" in done.stderr
    assert "osd.0.out says:" in done.stderr
    assert daemons_below(tmp_path) == []
    script("down", "--dir", tmp_path, "--purge")


def test_run_gives_the_exit_code_and_leaves_nothing(tmp_path: Path) -> None:
    say = 'echo "$CEPH_DEV_DIR $RBDTREE_CONFIG"; rbd -c "$CEPH_DEV_DIR/r/ceph.conf" ls; exit 7'
    done = script("run", "r", "--", "sh", "-c", say, code=7)
    directory, config = map(Path, done.stdout.split())
    assert config == directory / "rbdtree.toml"
    assert not directory.exists()
    assert daemons_below(directory) == []
    script("run", "--dir", tmp_path, "--objectstore", "memstore", "r", "--", "no-such-command", code=127)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_runs_do_not_collide() -> None:
    say = 'for n in x y; do rbd -c "$CEPH_DEV_DIR/$n/ceph.conf" create --size 1M "$$" || exit 1; done'
    command = [SCRIPTS / "run", "x", "y", "--", "sh", "-c", f'{say}; rbd -c "$CEPH_DEV_DIR/x/ceph.conf" ls']
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert [len(answer) for answer in answers] == [1, 1]
    assert answers[0] != answers[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda one: one.name)
@pytest.mark.parametrize("moment", ["booting", "running"])
def test_a_signal_to_run_leaves_nothing(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    command = [SCRIPTS / "run", "--dir", tmp_path, "--objectstore", "memstore", "s", "--"]
    command += ["sh", "-c", f"touch {tmp_path}/started; exec sleep 300"]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    seen = {"booting": tmp_path / "s/run/mon.a.pid", "running": tmp_path / "started"}[moment]
    wait_until(seen.exists)
    os.kill(running.pid, number)
    code = running.wait(timeout=20)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not (tmp_path / "s").exists() and daemons_below(tmp_path) == [])
    assert not (tmp_path / "rbdtree.toml").exists()
