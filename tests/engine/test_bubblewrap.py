"""What is the embedded engine's own; what both engines do is tried in tests/contracts."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

import cmdsvc
from cmdsvc.engine import launch
from cmdsvc.engine.bubblewrap import BubblewrapEngine, arguments, cgroups
from cmdsvc.engine.bubblewrap.store import Store, remove
from cmdsvc.engine.bubblewrap.stubs import PREPARED
from cmdsvc.engine.launch import make as launch_make
from cmdsvc.errors import BusyError, DataError, EngineError
from cmdsvc.model import Outcome, Terminal
from cmdsvc.recipe import Recipe
from tests.availability import unavailable
from tests.engine.bubblewrap_lab import (
    ENV,
    LIMITS,
    MB,
    children,
    invocation,
    opened,
    quiet,
    recipe_on,
    run,
    settings_for,
    spawner_of,
    until,
)

OS_RELEASE = b'ID=alpine\nVERSION_ID="3.23.6"\nPRETTY_NAME="Alpine Linux v3.23"\n'
ROOT = os.geteuid() == 0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(kit, tmp_path_factory) -> AsyncIterator[BubblewrapEngine]:
    folder = tmp_path_factory.mktemp("bubblewrap")
    folder.chmod(0o700)
    async with opened(settings_for(folder, str(kit.base))) as engine:
        await engine.build(recipe_on(kit), quiet)
        yield engine


@pytest.fixture
def recipe(kit) -> Recipe:
    return recipe_on(kit)


def user_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def call(*command: str | Path, **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **how)


def told_to_all(secret: bytes) -> bool:
    """Whether the arguments of a process have it."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if secret in line.read_bytes():
                return True
    return False


async def test_a_run(engine: BubblewrapEngine, recipe: Recipe) -> None:
    assert await run(engine, invocation(recipe, "echo hello")) == (Outcome(0), b"hello\n")


async def test_the_first_process_is_closed_to_the_program(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    script = (
        "cat /proc/1/mem /proc/1/fd/3; readlink /proc/1/exe /proc/1/fd/3; kill -9 1; echo alive"
    )
    outcome, out = await run(engine, invocation(recipe, f"exec 2>/dev/null\n{script}"))
    assert (outcome, out) == (Outcome(0), b"alive\n")


async def test_scripts_do_not_run_as_root(engine: BubblewrapEngine, recipe: Recipe) -> None:
    job = await engine.start(invocation(recipe, "echo up; read x"))
    try:
        output = job.output()
        await anext(output)
        family = [p for c in children(spawner_of(engine)) for p in (c, *children(c))]
        users = {user_of(pid) for pid in family if _alive(pid)}
    finally:
        await job.aclose()
    assert users
    assert 0 not in users


async def test_root_is_refused_as_the_user_of_scripts(tmp_path: Path) -> None:
    if not ROOT:
        pytest.skip("needs root")
    engine = BubblewrapEngine(settings_for(tmp_path, "/none.tar"), uid=0)
    with pytest.raises(EngineError, match="user 0"):
        await engine.open()


async def test_arguments_and_environment_are_not_for_the_host(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    secret = secrets.token_hex(16).encode()
    job = await engine.start(invocation(recipe, "echo up; read x", env={**ENV, b"KEY": secret}))
    try:
        await anext(job.output())
        assert not told_to_all(secret)
    finally:
        await job.aclose()


async def test_leaving_while_the_sandbox_starts_leaves_nothing(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    """At every moment of the first milliseconds: bwrap has to take its child with it."""
    for step in range(80):
        job = await engine.start(invocation(recipe, "sleep 1000 & sleep 1000"))
        await asyncio.sleep(step * 0.0002)
        await job.aclose()
        assert (await job.wait()).exit_status == 137
    pid = spawner_of(engine)
    await until(lambda: len(children(pid)) == PREPARED == len(engine._machine._stubs._ready))
    assert all(not children(stub) for stub in children(pid))


async def test_a_start_that_is_cancelled_leaves_nothing(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    starts = [asyncio.create_task(engine.start(invocation(recipe, "sleep 9"))) for _ in range(12)]
    await asyncio.sleep(0)
    for task in starts:
        task.cancel()
    for result in await asyncio.gather(*starts, return_exceptions=True):
        if not isinstance(result, asyncio.CancelledError):
            await result.aclose()
    await until(lambda: len(children(spawner_of(engine))) == PREPARED)


async def test_the_spawner_is_killed(kit, tmp_path: Path) -> None:
    """Its runs are lost, and are told so; the next one has a new spawner."""
    recipe = recipe_on(kit)
    async with opened(settings_for(tmp_path, str(kit.base))) as engine:
        await engine.build(recipe, quiet)
        job = await engine.start(invocation(recipe, "echo up; read x"))
        output = job.output()
        await anext(output)
        sandboxed = [p for c in children(spawner_of(engine)) for p in children(c)]
        assert sandboxed
        os.kill(spawner_of(engine), signal.SIGKILL)
        assert [item async for item in output] == []
        with pytest.raises(EngineError, match="lost"):
            await job.wait()
        await job.aclose()
        await until(lambda: not any(_alive(pid) for pid in sandboxed))
        assert await run(engine, invocation(recipe, "echo again")) == (Outcome(0), b"again\n")


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"launch" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def test_a_layer_in_use_is_locked(engine: BubblewrapEngine, recipe: Recipe) -> None:
    folder = os.open(engine._store.root / "layers" / recipe.digest, os.O_RDONLY)
    try:
        job = await engine.start(invocation(recipe, "read x"))
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BusyError):
            await engine.purge()
        assert await engine.has(recipe)
        await job.aclose()

        def free() -> bool:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return False

        await until(free)
    finally:
        os.close(folder)


async def test_purge(kit, tmp_path: Path) -> None:
    recipe = recipe_on(kit)
    async with opened(settings_for(tmp_path, str(kit.base))) as engine:
        await engine.build(recipe, quiet)
        await engine.purge()
        assert not await engine.has(recipe)
        left = [path for path in engine._store.root.rglob("*") if path.parent != engine._store.root]
        assert left == []
        await engine.build(recipe, quiet)
        assert (await run(engine, invocation(recipe, "true")))[0] == Outcome(0)


async def test_lower_limits_are_in_force(engine: BubblewrapEngine, recipe: Recipe) -> None:
    limits = replace(LIMITS, disk=4 * MB, pids=8)
    script = "dd if=/dev/zero of=/tmp/x bs=64k count=200 2>/dev/null; stat -c %s /tmp/x"
    _, out = await run(engine, invocation(recipe, script, limits=limits))
    assert 3 * MB < int(out) <= 4 * MB


async def test_shared_memory_counts_as_disk(engine: BubblewrapEngine, recipe: Recipe) -> None:
    script = (
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; dd if=/dev/zero of=/cmd/y bs=1M count=60"
    )
    _, out = await run(engine, invocation(recipe, f"({script}) 2>/dev/null; du -m /dev/shm /cmd"))
    assert sum(int(line.split()[0]) for line in out.splitlines()) <= 66


async def test_a_terminal_needs_nothing_of_the_image(
    engine: BubblewrapEngine, recipe: Recipe
) -> None:
    job = await engine.start(
        invocation(
            recipe,
            "tty; stty size; read x; echo got $x",
            terminal=Terminal("xterm", 91, 17),
            env={},
        )
    )
    try:
        async with asyncio.timeout(20):
            await job.send(b"line\n")
            out = b"".join([data async for _, data in job.output()])
            assert await job.wait() == Outcome(0)
    finally:
        await job.aclose()
    for word in (b"/dev/pts/0", b"17 91", b"got line"):
        assert word in out


async def test_check_tells_what_is_in_force(engine: BubblewrapEngine) -> None:
    findings = await engine.check()
    assert not [finding for finding in findings if finding.level == "error"]
    assert "makes sandboxes" in findings[0].what


async def test_check_works_while_closed(tmp_path: Path) -> None:
    findings = await BubblewrapEngine(settings_for(tmp_path, "/none.tar")).check()
    assert findings[0].level == "ok"
    assert not (tmp_path / "engine").exists()


async def test_an_image_is_not_for_this_engine(engine: BubblewrapEngine) -> None:
    with pytest.raises(DataError, match="CMDSVC_BASE_DEBIAN"):
        await engine.pull("debian", "", quiet)
    with pytest.raises(DataError, match="no base"):
        await engine.pull("plan9", "", quiet)


def tarball(path: Path, *entries: tuple[str, bytes | str, bytes]) -> str:
    """A tarball of (name, type or link's target, content) members; an os-release is added."""
    how = {".gz": "gz", ".xz": "xz"}.get(path.suffix, "")
    with tarfile.open(path.with_suffix("") if path.suffix == ".zst" else path, f"w:{how}") as tar:
        for name, kind, content in (("etc/os-release", tarfile.REGTYPE, OS_RELEASE), *entries):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.uid, entry.gid = 0o755, 12, 34
            if isinstance(kind, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, kind
                if kind.startswith("hard:"):
                    entry.type, entry.linkname = tarfile.LNKTYPE, kind.removeprefix("hard:")
            else:
                entry.type, entry.size = kind, len(content)
            tar.addfile(entry, io.BytesIO(content))
    return str(path)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.zst"])
async def test_every_kind_of_tarball(tmp_path: Path, suffix: str) -> None:
    source = tarball(tmp_path / f"base.{suffix}", ("bin/x", tarfile.REGTYPE, b"content"))
    if suffix == "tar.zst":
        if not shutil.which("zstd"):
            unavailable("no zstd")
        assert call("zstd", "-q", "--rm", source.removesuffix(".zst")).returncode == 0
    async with opened(settings_for(tmp_path, source)) as engine:
        await engine.pull("alpine", "3.23", quiet)
        [root] = (engine._store.root / "bases").glob("*/root")
        assert (root / "bin/x").read_bytes() == b"content"
        if ROOT:
            assert (root / "bin/x").stat().st_uid == engine._uid + 12
        with pytest.raises(DataError, match=r"not 3\.22"):
            await engine.pull("alpine", "3.22", quiet)
        assert list((engine._store.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "entries",
    [
        [("../outside", tarfile.REGTYPE, b"x")],
        [("a/../../outside", tarfile.REGTYPE, b"x")],
        [("link", "{outside}", b""), ("link/outside", tarfile.REGTYPE, b"x")],
        [("link", "../../../../../../../..{outside}", b""), ("link/new", tarfile.REGTYPE, b"x")],
        [("hard", "hard:{outside}/secret", b"")],
        [("hard", "hard:../../../../../../../..{outside}/secret", b"")],
        [("dev/sda", tarfile.BLKTYPE, b""), ("dev/mem", tarfile.CHRTYPE, b"")],
        [("fifo", tarfile.FIFOTYPE, b"")],
        [("etc", "{outside}", b""), ("etc/os-release", tarfile.REGTYPE, OS_RELEASE)],
    ],
)
async def test_a_hostile_tarball_stays_inside(tmp_path: Path, entries) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "secret").write_text("secret")
    (outside / "secret").chmod(0o666)
    filled = [
        (name, kind.format(outside=outside) if isinstance(kind, str) else kind, content)
        for name, kind, content in entries
    ]
    source = tarball(tmp_path / "base.tar", *filled)
    async with opened(settings_for(tmp_path, source)) as engine:
        with contextlib.suppress(DataError):
            await engine.pull("alpine", "", quiet)
        assert list(outside.iterdir()) == [outside / "secret"]
        assert (outside / "secret").read_text() == "secret"
        assert (outside / "secret").stat().st_nlink == 1
        for path in engine._store.root.rglob("*"):
            assert path.is_symlink() or path.is_file() or path.is_dir(), path
        assert list((engine._store.root / "tmp").iterdir()) == []


async def test_what_is_no_tarball(tmp_path: Path) -> None:
    source = tmp_path / "base.tar.gz"
    source.write_bytes(b"not at all")
    async with opened(settings_for(tmp_path, str(source))) as engine:
        with pytest.raises(DataError, match="cannot be unpacked"):
            await engine.pull("alpine", "", quiet)


async def test_a_base_is_refreshed_and_layers_keep_theirs(tmp_path: Path) -> None:
    source = tarball(tmp_path / "base.tar", ("x", tarfile.REGTYPE, b"one"))
    recipe = Recipe("alpine", "", (), source)
    async with opened(settings_for(tmp_path, source)) as engine:
        await engine.build(recipe, quiet)
        tarball(tmp_path / "base.tar", ("x", tarfile.REGTYPE, b"two"))
        await engine.pull("alpine", "", quiet)
        bases = {root.read_bytes() for root in (engine._store.root / "bases").glob("*/root/x")}
        assert bases == {b"one", b"two"}
        layer = engine._store.hold(engine._store.current(recipe.digest))
        assert (engine._store.root / layer.paths[0] / "x").read_bytes() == b"one"
        layer.close()


async def test_the_first_of_two_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, None)
    store.open(beside=False)
    for text in ("one", "two"):
        with store.temporary() as folder:
            (folder / "root").mkdir()
            (folder / "os-release").write_text(text)
            store.keep_base(folder, "abc")
    assert store.os_release("abc") == b"one"
    assert list((store.root / "tmp").iterdir()) == []


async def test_layers_of_earlier_releases_are_kept(tmp_path: Path) -> None:
    """They were folders where there are links now; what no link names is nobody's."""
    store = Store(tmp_path, None)
    store.open(beside=False)
    recipe = Recipe("alpine", "", (), "alpine")
    folder = store.root / "layers" / recipe.digest
    (folder / "root").mkdir(parents=True)
    (folder / "base").write_text("one")
    (store.root / "made/nobodys/root").mkdir(parents=True)
    store.open(beside=True)
    assert (store.root / "made/nobodys").exists()
    for _ in range(2):
        store = Store(tmp_path, None)
        store.open(beside=False)
        assert store.has(recipe)
        layer = store.hold(store.current(recipe.digest))
        assert (store.root / layer.paths[1]).is_dir()
        layer.close()
        assert len(list((store.root / "made").iterdir())) == 1
    assert store.detach(store.layers(())[0])
    assert not store.has(recipe)


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/./b", ""])
async def test_files_of_a_plan_stay_inside(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path, None)
    with pytest.raises(ValueError):
        store.put(tmp_path, {name: b"x"})


async def test_remove_follows_no_link(tmp_path: Path) -> None:
    keep = tmp_path / "keep"
    keep.mkdir(mode=0o755)
    (keep / "file").write_text("x")
    gone = tmp_path / "gone"
    (gone / "closed").mkdir(parents=True)
    (gone / "closed/file").write_text("x")
    (gone / "link").symlink_to(keep)
    (gone / "closed").chmod(0)
    remove(gone)
    assert not gone.exists()
    assert (keep / "file").exists()


def mounted(*lines: str) -> Iterator[tuple[str, Path, set[str]]]:
    for line in lines:
        kind, where, options = line.split()
        yield kind, Path(where), set(options.split(","))


async def test_control_groups_of_version_1(tmp_path: Path, monkeypatch) -> None:
    for name in ("memory", "cpu"):
        (tmp_path / name).mkdir()
    lines = [f"cgroup {tmp_path}/memory rw,memory", f"cgroup {tmp_path}/cpu rw,cpu,cpuacct"]
    monkeypatch.setattr(cgroups, "_mounts", lambda: mounted(*lines))
    found = cgroups.find("a/b ../c")
    assert found.version == 1
    assert found.missing == ("pids",)
    assert {path.parent for path in found.parents} == {tmp_path / "memory", tmp_path / "cpu"}
    assert {path.name for path in found.parents} == {"cmdsvc-a-b-..-c"}
    by_parent = dict(zip(found.parents, found.values(LIMITS), strict=True))
    assert by_parent[found.folders["memory"]] == {"memory.limit_in_bytes": str(LIMITS.memory)}
    assert by_parent[found.folders["cpu"]]["cpu.cfs_quota_us"] == "200000"


async def test_control_groups_of_version_2(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    found = cgroups.Cgroups(
        2, dict.fromkeys(cgroups.CONTROLLERS, folder), frozenset({"memory.swap.max"})
    )
    assert found.parents == (folder,)
    [values] = found.values(replace(LIMITS, cpus=0.001))
    assert values == {
        "memory.max": str(LIMITS.memory),
        "memory.swap.max": "0",
        "pids.max": str(LIMITS.pids + cgroups.OWN_PROCESSES),
        "cpu.max": "1000 100000",
    }
    (folder / "1").mkdir(parents=True)
    (folder / "1/memory.events").write_text("low 0\noom 2\noom_kill 0\noom_group_kill 0\n")
    assert not found.out_of_memory("1")
    (folder / "1/memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert found.out_of_memory("1")


async def test_no_control_groups(monkeypatch) -> None:
    monkeypatch.setattr(cgroups, "_mounts", lambda: mounted("proc /proc rw"))
    with pytest.raises(cgroups.NoCgroupsError):
        cgroups.find("x")


async def test_without_control_groups_there_are_still_limits(
    kit, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(cgroups, "_mounts", lambda: mounted("proc /proc rw"))
    recipe = recipe_on(kit)
    async with opened(settings_for(tmp_path, str(kit.base))) as engine:
        await engine.build(recipe, quiet)
        script = "ulimit -v; for i in $(seq 200); do sleep 60 & done; jobs | wc -l"
        outcome, out = await run(engine, invocation(recipe, f"exec 2>&1\n{script}"))
        lines = out.decode().splitlines()
        assert lines[0] == str(LIMITS.memory // 1024)
        assert any("fork" in line for line in lines), (outcome, out)
        levels = {finding.level for finding in await engine.check()}
        assert "warning" in levels


async def test_the_filters_are_what_the_rules_say() -> None:
    pytest.importorskip("pyseccomp")
    from cmdsvc.engine.bubblewrap.seccomp import make

    for machine in launch.MACHINES:
        for name, data in make.filters(machine).items():
            assert (arguments.HERE / "seccomp" / name).read_bytes() == data, name


async def test_the_launcher_is_what_its_source_says() -> None:
    """As far as the compiler is the same: another one may make other bytes."""
    compiler = launch_make.COMPILERS.get(platform.machine(), "")
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler or 'launcher here'}")
    made, shipped = launch_make.compiled(platform.machine()), launch.program().read_bytes()
    assert abs(len(made) - len(shipped)) < 1000
    if call(compiler, "-dumpversion").stdout.startswith("12"):
        assert made == shipped


async def test_the_launcher_does_nothing_outside_of_a_sandbox(tmp_path: Path) -> None:
    program = tmp_path / "launch"
    program.write_bytes(launch.program().read_bytes())
    program.chmod(0o755)
    done = call(program, "3", "0", "-", "-", "/bin", "4", "1")
    assert done.returncode == 126


UNPRIVILEGED = """
import asyncio, sys
from pathlib import Path
from cmdsvc.engine import EngineSettings, Invocation, Sources
from cmdsvc.engine.bubblewrap import BubblewrapEngine
from cmdsvc.model import Limits, Network, SCRIPT_PATH
from cmdsvc.recipe import Recipe

async def main(folder, base):
    limits = Limits(60.0, 256 << 20, 1.0, 64, 64 << 20)
    settings = EngineSettings(Path(folder), "unprivileged", Sources({"alpine": base}), limits)
    engine, recipe = BubblewrapEngine(settings), Recipe("alpine", "", (), base)
    await engine.open()
    try:
        await engine.build(recipe, lambda line: None)
        script = b"#!/bin/sh\\nid -u; echo x > /root-is-writable && echo written; exit 7\\n"
        job = await engine.start(
            Invocation("x", recipe, (SCRIPT_PATH,), script, {}, limits, Network.NONE))
        out = b"".join([data async for _, data in job.output()])
        print(out.decode().split(), (await job.wait()).exit_status, sorted(engine.networks))
        await job.aclose()
        print([finding.level for finding in await engine.check()])
        await engine.purge()
    finally:
        await engine.aclose()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(not ROOT, reason="without root every test here is this one")
async def test_it_all_works_without_root(kit, tmp_path_factory) -> None:
    user = 65534
    path = os.pathsep.join([str(Path(cmdsvc.__file__).parents[1]), *sys.path])
    demote = {"user": user, "group": user, "extra_groups": []}
    env = {"PYTHONPATH": path, "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    for python in (sys.executable, "/usr/bin/python3"):
        probe = "import cmdsvc.engine.bubblewrap"
        with contextlib.suppress(OSError):
            if not call(python, "-c", probe, env=env, cwd="/", **demote).returncode:
                break
    else:
        unavailable("no Python that another user can run, with this program in its reach")
    folder = Path(tempfile.mkdtemp())  # not below one that only root can enter
    try:
        base = folder / "base.tar"
        shutil.copy(kit.base, base)
        os.chown(folder, user, user)
        command = (python, "-c", UNPRIVILEGED, str(folder / "engine"), str(base))
        how = {"env": env, "cwd": "/", "timeout": 120, **demote}
        done = await asyncio.to_thread(call, *command, **how)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[0] == "['0', 'written'] 7 [<Network.NONE: 'none'>]"
        assert "error" not in lines[1]
    finally:
        remove(folder)
